"""OpenTelemetry's metrics API, implemented with the recorder: each measurement writes one row to the ring.

`MeterProvider` implements `opentelemetry.metrics.MeterProvider` with the API's public names only. The agent aggregates the
measurements. Views are applied here, at the first measurement of an attribute set. An SDK provider next to the ring serves
additional metric readers.

No measurement waits, or raises for its value. Each problem is counted, with one warning on the logger `tensormeter`.
"""

from tensormeter.instruments.provider import MeterProvider, configure

__all__ = ["MeterProvider", "configure"]
