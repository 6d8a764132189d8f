"""Receivers of OTLP/HTTP requests: metrics, logs, and a clear answer to other signals."""
