"""Reduction of many values to one: `every=` and `define_metric`."""
