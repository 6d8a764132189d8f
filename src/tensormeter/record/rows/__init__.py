"""Writers that put rows into the ring. This is the hot path."""
