"""Decisions that all stores make alike."""
