"""Sensors of the host: processor, memory, processes, file systems, containers."""
