"""Rules that every store applies."""
