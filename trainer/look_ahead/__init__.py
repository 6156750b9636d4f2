"""A run before it runs."""
