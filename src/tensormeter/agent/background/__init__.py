"""Slow work of the agent: descriptions of the code, and sizes and digests of artifacts."""
