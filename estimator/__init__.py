"""What a training step needs and how long it takes."""
