"""OpenTelemetry's metrics API, implemented with the recorder: each measurement writes one row to the ring.

`MeterProvider` implements `opentelemetry.metrics.MeterProvider`, using only public names of the API. The agent aggregates the
measurements. Views are applied in this package, on the first measurement of an attribute set. A separate SDK provider serves
additional metric readers.

Measurements never wait, and never raise because of their value. Each problem is counted, with one warning on the `tensormeter`
logger.
"""

from tensormeter.instruments.provider import MeterProvider, configure

__all__ = ["MeterProvider", "configure"]
