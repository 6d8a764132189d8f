"""Histograms, counted on the host or on a device."""
