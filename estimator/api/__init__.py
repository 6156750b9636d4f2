"""The front door: what a command does, as one call."""
