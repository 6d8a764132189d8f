"""From the SDK's metrics data, one object a point, to columns: one series for each metric and attribute set."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from opentelemetry.sdk.metrics.export import AggregationTemporality, Metric, MetricsData, NumberDataPoint, Sum

from tensormeter.otlp.batch import Attribute, Gauge

__all__ = ["Columns"]

_MOST_POINTS: Final = 200_000
"""Points held while nobody takes them: 10 MB or so."""


@dataclass
class _Column:
    metric: Metric
    attributes: Mapping[str, Attribute]
    times: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    values: list[int | float] = field(default_factory=list)


class Columns:
    """Collects samples until they are taken. One thread adds, another takes."""

    def __init__(self, most_points: int = _MOST_POINTS) -> None:
        self._lock = threading.Lock()
        self._columns: dict[tuple[object, ...], _Column] = {}
        self._most = most_points
        self.points = 0
        self.dropped = 0
        """Points that came while too many were waiting."""

    def add(self, data: MetricsData) -> None:
        """Append every point of a collection to its series."""
        with self._lock:
            for resource in data.resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        for point in metric.data.data_points:
                            if isinstance(point, NumberDataPoint):
                                self._append(metric, point)

    def take(self) -> list[Gauge]:
        """All series since the last call, which are the caller's from now on."""
        with self._lock:
            columns, self._columns, self.points = self._columns, {}, 0
        return [_series(column) for column in columns.values()]

    def _append(self, metric: Metric, point: NumberDataPoint) -> None:
        if self.points >= self._most:
            self.dropped += 1
            return
        attributes = point.attributes or {}
        key = (metric.name, *sorted(attributes.items()))
        column = self._columns.get(key)
        if column is None:
            column = self._columns[key] = _Column(metric, attributes)  # type: ignore[arg-type]
        column.times.append(point.time_unix_nano)
        column.starts.append(point.start_time_unix_nano or 0)
        column.values.append(point.value)
        self.points += 1


def _series(column: _Column) -> Gauge:
    metric = column.metric
    integers = all(isinstance(value, int) for value in column.values)
    return Gauge(
        metric.name,
        np.array(column.times, np.uint64),
        np.array(column.values, np.int64 if integers else np.float64),
        unit=metric.unit or "",
        description=metric.description or "",
        attributes=column.attributes,
    )
