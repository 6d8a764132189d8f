"""The SQLite store: one file for a single server."""
