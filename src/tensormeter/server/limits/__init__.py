"""Limits on the resources that clients use: connections, memory for responses, processor time."""
