"""Reduction of several values to one, for `every=` and `define_metric`."""
