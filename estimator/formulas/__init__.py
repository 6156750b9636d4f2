"""What a step needs: pure functions over arrays."""
