"""A model laid over ranks."""
