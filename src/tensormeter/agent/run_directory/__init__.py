"""The directory that a run has on a node while data of it waits for delivery."""
