"""Phases of a training step, and their timeline."""
