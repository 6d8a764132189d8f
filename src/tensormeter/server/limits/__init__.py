"""Limits on resources that clients use: connections, memory for responses, and processor time."""
