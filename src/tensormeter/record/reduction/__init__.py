"""Reducing many values to one row: `every=` and `define_metric`."""
