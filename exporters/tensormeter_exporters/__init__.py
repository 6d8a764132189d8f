"""Destinations of tensormeter, one module each. They implement `tensormeter.exporter` and use the OTLP codec."""
