"""Histograms whose values are counted on the host or on a device."""
