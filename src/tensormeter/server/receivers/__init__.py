"""Receivers of OTLP."""
