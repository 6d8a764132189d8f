"""The directory that a run has on a node while some of its data is waiting for delivery."""
