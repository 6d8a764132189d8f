"""Plain values that cross the interface of a store."""
