"""Limits on what clients may cost: connections, memory for responses, processor time."""
