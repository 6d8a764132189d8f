"""Copying of device values to the host without waiting for the device."""
