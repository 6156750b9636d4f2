"""Where and how the processes of a run start and stop."""
