"""The agent: a separate process that moves data from the rings of a run to its destinations.

Importing this package imports nothing else, because the training process imports `directory` and `launch` from it.
"""
