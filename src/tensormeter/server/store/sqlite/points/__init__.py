"""Points of series: the newest in the memtable, the others in segments of the file."""
