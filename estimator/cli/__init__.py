"""The commands `estimate` and `calibrate`."""
