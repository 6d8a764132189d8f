"""Destinations of tensormeter, one module each. They use the interface in `tensormeter.exporter` and the codec."""
