"""The metrics that have new number points. They are found by the hashes of their names, without reading the catalog."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.sqlite.points.number_parts import NumberPart

__all__ = ["SeriesByName", "find_metrics", "find_non_finite"]

SeriesByName = dict[int, int]
"""Row ID of one series of each metric, by the hash of the metric's name."""


def find_metrics(parts: Iterable[NumberPart], limit: int) -> SeriesByName | None:
    """Return the metrics with points in these parts, or None if there are more than `limit`."""
    found: SeriesByName = {}
    for part in parts:
        if len(np.unique(part.names[: 4 * limit])) > limit:  # faster than to sort all of them
            return None
        found.update(_distinct(part.names, part.series))
        if len(found) > limit:
            return None
    return found


def find_non_finite(parts: Iterable[NumberPart]) -> SeriesByName:
    """Return the metrics with points in these parts that are NaN or infinite."""
    found: SeriesByName = {}
    for part in parts:
        points = np.flatnonzero(part.points.non_finite())
        if len(points):
            stretches = points if part.starts is None else np.searchsorted(part.starts, points, side="right") - 1
            found.update(_distinct(part.names[stretches], part.series[stretches]))
    return found


def _distinct(names: NDArray[np.uint64], series: NDArray[np.int64]) -> SeriesByName:
    hashes, firsts = np.unique(names, return_index=True)
    return dict(zip(hashes.tolist(), series[firsts].tolist(), strict=True))
