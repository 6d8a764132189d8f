"""Metric points: sampled for charts, complete, or as distributions."""
