"""OpenTelemetry's metrics API on top of the recorder: numbers and tensors in, rows of the ring out.

`MeterProvider` implements `opentelemetry.metrics.MeterProvider` by the API's public names. Each measurement is one row of the
ring; what it adds up to is worked out by the agent. Views given by the user are applied here, when an attribute set is seen
for the first time; further metric readers given by the user are served by an SDK provider beside the ring.

Nothing here raises for what is measured, and no measurement waits: problems are warned about once, on the logger
`tensormeter`, and counted.
"""

from tensormeter.instruments.provider import MeterProvider, configure

__all__ = ["MeterProvider", "configure"]
