"""Detection of damage in the SQLite file before the store returns wrong values."""
