"""Metrics of the training process: garbage collection and torch memory."""
