"""The agent: a separate process that moves data from a run's rings to its destinations.

This file imports nothing, because the training process imports `run_directory.directory` and `launch` from the package.
"""
