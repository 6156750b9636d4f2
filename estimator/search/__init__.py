"""The best answer."""
