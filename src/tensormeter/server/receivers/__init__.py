"""Receivers of OTLP/HTTP requests: metrics, logs, and a clear response to other signals."""
