"""Tables of the SQLite file: runs, series, events and the commit log."""
