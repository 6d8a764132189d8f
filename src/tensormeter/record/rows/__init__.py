"""Writers that put rows into the ring. This package is the hot path."""
