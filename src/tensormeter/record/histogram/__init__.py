"""Histograms: counted on the host or on the device."""
