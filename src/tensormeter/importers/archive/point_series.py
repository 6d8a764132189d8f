"""Conversion of rows of `points` to series."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.archive.series_rows import SeriesKey, Stretch, int64_column
from tensormeter.importers.registry import SourceError
from tensormeter.otlp.batch import Gauge, Sum

__all__ = ["PointColumns"]

Numbers = NDArray[np.float64] | NDArray[np.int64]


class PointColumns:
    """The values of a row group of `points`."""

    def __init__(self, table: Any) -> None:
        column = table.column("value").combine_chunks()
        self._has_value = ~np.asarray(column.is_null())
        self._values = np.asarray(column.fill_null(0.0), np.float64)
        self._integers, self._is_integer = int64_column(table, "integer")

    def series(self, stretch: Stretch, chosen: NDArray[np.intp], description: str) -> Iterator[Gauge | Sum]:
        """Yield the points of a stretch at some positions: one series of floats, and one of integers, if there are any."""
        is_integer = self._is_integer[stretch.rows][chosen]
        has_value = self._has_value[stretch.rows][chosen] & ~is_integer
        times = stretch.time[chosen].view(np.uint64)
        fields = stretch.key.fields(description)
        if has_value.any():
            yield _series(stretch.key, times[has_value], self._values[stretch.rows][chosen][has_value], fields)
        if is_integer.any():
            yield _series(stretch.key, times[is_integer], self._integers[stretch.rows][chosen][is_integer], fields)

    def gaps(self, stretch: Stretch) -> NDArray[np.int64]:
        """Return the times of the rows without a value."""
        return stretch.time[~(self._has_value | self._is_integer)[stretch.rows]]


def _series(key: SeriesKey, times: NDArray[np.uint64], values: Numbers, fields: dict[str, Any]) -> Gauge | Sum:
    if key.kind == "gauge":
        return Gauge(key.metric, times, values, **fields)
    if key.kind == "sum":
        starts = np.zeros(len(times), np.uint64)
        return Sum(key.metric, times, values, starts, monotonic=bool(key.monotonic), temporality=key.period(), **fields)
    raise SourceError(f"metric {key.metric!r}: expected the kind gauge or sum, got {key.kind!r}")
