"""Sensors of GPUs."""
