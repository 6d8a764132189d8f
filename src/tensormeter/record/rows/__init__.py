"""Writing rows into the ring."""
