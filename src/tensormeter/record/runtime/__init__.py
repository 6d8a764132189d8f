"""Metrics of the training process: garbage collection, memory of torch."""
