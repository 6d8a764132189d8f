"""Queries for metric points: sampled for charts, in full, or as distributions."""
