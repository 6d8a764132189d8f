"""A run in this process."""
