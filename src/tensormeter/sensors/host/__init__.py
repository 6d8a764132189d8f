"""Sensors of the host: processors, memory, processes, file systems, containers."""
