"""What software makes of hardware."""
