"""Conversion of OpenTelemetry SDK metrics to columns.

The SDK has one object per point; columns have one series per metric and attribute set.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray
from opentelemetry.sdk.metrics import export

from tensormeter.otlp.batch import Attribute, Gauge, Scope, Sum, Temporality

__all__ = ["Columns"]

_MOST_POINTS: Final = 200_000
"""Maximum number of points to buffer, about 10 MB."""


class _About(TypedDict):
    unit: str
    description: str
    attributes: Mapping[str, Attribute]
    scope: Scope


@dataclass
class _Column:
    scope: Scope
    metric: export.Metric
    attributes: Mapping[str, Attribute]
    times: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    values: list[int | float] = field(default_factory=list)


class Columns:
    """Buffer for samples. One thread adds samples, and another takes them."""

    def __init__(self, most_points: int = _MOST_POINTS) -> None:
        self._lock = threading.Lock()
        self._columns: dict[tuple[object, ...], _Column] = {}
        self._most = most_points
        self.points = 0
        self.dropped = 0
        """Number of points that were dropped because the buffer was full."""

    def add(self, data: export.MetricsData) -> None:
        """Append the points of one collection to their series."""
        with self._lock:
            for resource in data.resource_metrics:
                for scope_metrics in resource.scope_metrics:
                    scope = Scope(scope_metrics.scope.name, scope_metrics.scope.version or "")
                    for metric in scope_metrics.metrics:
                        for point in metric.data.data_points:
                            if isinstance(point, export.NumberDataPoint):
                                self._append(scope, metric, point)

    def take(self) -> list[Gauge | Sum]:
        """Remove and return all series."""
        with self._lock:
            columns, self._columns, self.points = self._columns, {}, 0
        return [_series(column) for column in columns.values()]

    def _append(self, scope: Scope, metric: export.Metric, point: export.NumberDataPoint) -> None:
        if self.points >= self._most:
            self.dropped += 1
            return
        attributes = point.attributes or {}
        key = (metric.name, *sorted(attributes.items()))
        column = self._columns.get(key)
        if column is None:
            column = self._columns[key] = _Column(scope, metric, attributes)  # type: ignore[arg-type]
        column.times.append(point.time_unix_nano)
        column.starts.append(point.start_time_unix_nano or 0)
        column.values.append(point.value)
        self.points += 1


def _series(column: _Column) -> Gauge | Sum:
    metric = column.metric
    times = np.array(column.times, np.uint64)
    integers = all(isinstance(value, int) for value in column.values)
    values: NDArray[np.int64] | NDArray[np.float64] = (
        np.array(column.values, np.int64) if integers else np.array(column.values, np.float64)
    )
    about: _About = {
        "unit": metric.unit or "",
        "description": metric.description or "",
        "attributes": column.attributes,
        "scope": column.scope,
    }
    if not isinstance(metric.data, export.Sum):
        return Gauge(metric.name, times, values, **about)
    return Sum(
        metric.name,
        times,
        values,
        np.array(column.starts, np.uint64),
        monotonic=metric.data.is_monotonic,
        temporality=Temporality(metric.data.aggregation_temporality),
        **about,
    )
