"""Queries for the points of metrics: sampled for charts, raw, or as distributions."""
