"""Points of series. The newest points are in the memtable, and the others in segments in the file."""
