"""Classifying the values that users log."""
