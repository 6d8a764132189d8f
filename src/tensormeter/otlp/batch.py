"""Telemetry in columns: what travels between the ring and the wire, and between the wire and the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCOPE", "STEP_METRIC", "Attribute", "Batch", "Event", "Gauge", "Value"]

Value = None | bool | int | float | str | bytes | Sequence["Value"] | Mapping[str, "Value"]
Attribute = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]

STEP_METRIC: Final = "tensormeter.step"
"""The gauge that carries a row's step, at the row's exact time: a sibling of the row's values, never an attribute."""

SCOPE: Final = "tensormeter"
"""Name of the instrumentation scope."""


@dataclass(frozen=True)
class Gauge:
    """Points of one metric with one attribute set.

    Attributes:
        name: The metric's name.
        times: Nanoseconds since the Unix epoch, uint64, shape (n,).
        values: float64 or int64, shape (n,). NaN and infinities are values.
        unit: UCUM unit, or "".
        description: For people, or "".
        attributes: The attribute set that tells this series from others of the same name.
    """

    name: str
    times: NDArray[np.uint64]
    values: NDArray[np.float64] | NDArray[np.int64]
    unit: str = ""
    description: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Points of one resource (for us: one process of one run)."""

    resource: Mapping[str, Attribute]
    gauges: Sequence[Gauge]

    @property
    def points(self) -> int:
        return sum(len(gauge.times) for gauge in self.gauges)


@dataclass(frozen=True)
class Event:
    """A log record with an event name: lifecycle, configuration, media.

    Attributes:
        name: Such as `tensormeter.run.start`.
        time: Nanoseconds since the Unix epoch.
        body: Any OTLP value; mappings and sequences may nest.
        attributes: The record's attributes.
    """

    name: str
    time: int
    body: Value = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
