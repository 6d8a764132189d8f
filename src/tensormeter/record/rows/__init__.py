"""Writers of rows into the ring. This is the hot path."""
