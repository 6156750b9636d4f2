"""One answer, with its interval."""
