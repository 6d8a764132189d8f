"""The agent: a separate process that moves data from a run's rings to its destinations.

This file imports nothing, so that the training process can import `run_directory.directory` and `launch` cheaply.
"""
