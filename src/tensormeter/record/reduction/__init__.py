"""Reduction of several values to one value, for `every=` and `define_metric`."""
