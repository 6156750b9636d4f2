"""Step logs: a file per format."""
