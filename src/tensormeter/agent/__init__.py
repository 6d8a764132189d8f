"""The pipeline: from the ring to the receiver. It runs in the agent, a process of its own.

Importing this package imports nothing else, because the training process imports `directory` and `launch` from it.
"""
