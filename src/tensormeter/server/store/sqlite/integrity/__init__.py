"""Detection of damage in the SQLite file before it becomes a wrong value."""
