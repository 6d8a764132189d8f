"""Values on devices: copied to the host without waiting for the device."""
