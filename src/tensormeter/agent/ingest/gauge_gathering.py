"""Gathering of the gauges of rows into columns, without Python code for each column or value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.gauge_points import GaugeEncoder, GaugePoints

__all__ = ["GaugeRows", "GaugeValues", "gather"]


@dataclass(frozen=True, eq=False)
class GaugeRows:
    """Values of the same k gauges at n times.

    Attributes:
        gauges: Numbers of the gauges, int64, shape (k,).
        integers: Whether the values of each gauge are integers, bool, shape (k,).
        times: Times, uint64, shape (n,).
        words: Bit patterns of the values, int64, shape (n, k).
        lost: Mask of the values that are missing, bool, shape (n, k); None if there are none.
    """

    gauges: NDArray[np.int64]
    integers: NDArray[np.bool_]
    times: NDArray[np.uint64]
    words: NDArray[np.int64]
    lost: NDArray[np.bool_] | None = None

    def values(self) -> "GaugeValues":
        """Return the values that are not missing, gauge by gauge."""
        n, k = self.words.shape
        values = GaugeValues(
            np.repeat(self.gauges, n),
            np.tile(self.times, k),
            np.ascontiguousarray(self.words.T).reshape(-1),
            np.repeat(self.integers, n),
        )
        return values if self.lost is None else values[~self.lost.T.reshape(-1)]


@dataclass(frozen=True, eq=False)
class GaugeValues:
    """Values of any gauges, in any order.

    Attributes:
        gauges: Number of each value's gauge, int64, shape (n,).
        times: Time of each value, uint64, shape (n,).
        words: Bit pattern of each value, int64, shape (n,).
        integers: Whether each value is an integer, bool, shape (n,).
    """

    gauges: NDArray[np.int64]
    times: NDArray[np.uint64]
    words: NDArray[np.int64]
    integers: NDArray[np.bool_]

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "GaugeValues":
        return GaugeValues(self.gauges[chosen], self.times[chosen], self.words[chosen], self.integers[chosen])


def gather(encoder: GaugeEncoder, rows: Sequence[GaugeRows], values: Sequence[GaugeValues]) -> GaugePoints | None:
    """Return all points in the order of gauges and times; None if there are no points."""
    rows = [_in_time_order(part) for part in rows]
    ranks = encoder.catalog.arrays().ranks
    if not values and all(part.lost is None for part in rows):
        gauges = np.concatenate([part.gauges for part in rows]) if rows else np.empty(0, np.int64)
        order = np.argsort(ranks[gauges])
        if len(gauges) and np.all(np.diff(ranks[gauges[order]])):
            return _gather_disjoint(encoder, rows, gauges, order)
    parts = [*(part.values() for part in rows), *values]
    return _gather_mixed(encoder, parts, ranks) if any(len(part.times) for part in parts) else None


def _in_time_order(rows: GaugeRows) -> GaugeRows:
    """Order rows by time, because receivers such as Prometheus remote write refuse out-of-order points."""
    if not np.any(rows.times[1:] < rows.times[:-1]):
        return rows
    order = np.argsort(rows.times, kind="stable")
    lost = None if rows.lost is None else rows.lost[order]
    return GaugeRows(rows.gauges, rows.integers, rows.times[order], rows.words[order], lost)


def _gather_disjoint(
    encoder: GaugeEncoder, rows: Sequence[GaugeRows], gauges: NDArray[np.int64], order: NDArray[np.intp]
) -> GaugePoints:
    """Gather rows that have no gauge in common."""
    parts = [part.values() for part in rows]
    counts = np.concatenate([np.full(len(part.gauges), len(part.times)) for part in rows])
    all_values = _concatenate(parts)
    if not np.array_equal(order, np.arange(len(order))):
        begins = np.cumsum(counts) - counts
        counts = counts[order]
        ends = np.cumsum(counts)
        shifts = np.repeat(begins[order] - (ends - counts), counts)
        all_values = all_values[np.arange(len(shifts)) + shifts]
    return GaugePoints(encoder, gauges[order], counts, all_values.times, all_values.words, all_values.integers)


def _gather_mixed(encoder: GaugeEncoder, parts: Sequence[GaugeValues], ranks: NDArray[np.int64]) -> GaugePoints:
    values = _concatenate(parts)
    values = values[np.argsort(ranks[values.gauges], kind="stable")]
    is_same = values.gauges[1:] == values.gauges[:-1]
    if np.any(is_same & (values.times[1:] < values.times[:-1])):
        values = values[np.lexsort((values.times, ranks[values.gauges]))]
    firsts: Final = np.flatnonzero(np.concatenate(([True], ~is_same)))
    counts = np.diff(firsts, append=len(values.gauges))
    return GaugePoints(encoder, values.gauges[firsts], counts, values.times, values.words, values.integers)


def _concatenate(parts: Sequence[GaugeValues]) -> GaugeValues:
    if len(parts) == 1:
        return parts[0]
    return GaugeValues(
        np.concatenate([part.gauges for part in parts]),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.words for part in parts]),
        np.concatenate([part.integers for part in parts]),
    )
