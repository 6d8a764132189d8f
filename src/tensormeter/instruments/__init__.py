"""An implementation of OpenTelemetry's metrics API on top of the recorder. Each measurement writes one row to the ring.

`MeterProvider` implements `opentelemetry.metrics.MeterProvider` and uses only the API's public names. The agent aggregates the
measurements. This package applies views when an attribute set is first measured. A separate SDK meter provider feeds additional
metric readers.

Recording a measurement blocks only if it must start a run, and an invalid value never raises an exception. Every value that
cannot be recorded is counted, and the first one of each kind causes a warning on the `tensormeter` logger.
"""

from tensormeter.instruments.provider import MeterProvider, configure

__all__ = ["MeterProvider", "configure"]
