"""Capture of the process's output: standard output, standard error, and Python's `logging`."""
