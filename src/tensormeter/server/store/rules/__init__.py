"""Rules that all stores apply."""
