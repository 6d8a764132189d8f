"""Histograms that are counted on the host or on a device."""
