"""Statistics of a metric over the ranks of a run."""
