"""Plain values that a store takes and returns."""
