"""Phases of training steps, and their timeline on the device."""
