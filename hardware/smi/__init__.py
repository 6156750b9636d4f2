"""The accelerator in use."""
