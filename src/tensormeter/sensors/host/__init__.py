"""Host sensors: processors, memory, processes, file systems and containers."""
