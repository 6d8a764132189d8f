"""Tables of the SQLite file: runs, series, events, and the log of commits."""
