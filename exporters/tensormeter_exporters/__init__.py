"""Destinations of tensormeter, one module each. They know the interface in `tensormeter.exporter`, and nothing else of it."""
