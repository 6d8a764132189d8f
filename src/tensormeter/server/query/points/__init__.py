"""Points of metrics: sampled for charts, in full, and as distributions."""
