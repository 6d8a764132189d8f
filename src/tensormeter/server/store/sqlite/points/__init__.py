"""Points of series: the newest in memory, the others in segments of the file."""
