"""Conversion of distributions in rows to OpenTelemetry histograms.

Each row's distribution becomes one point with delta temporality. The point's interval begins and ends at the time of
the row. Such empty intervals never overlap within a series, as OTLP requires. A start time of 0 would mean that the
start is unknown.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.item_rows import ItemRows
from tensormeter.agent.ingest.lane_reader import Rows
from tensormeter.agent.ingest.stream_table import DISTRIBUTION
from tensormeter.otlp.batch import Buckets, ExponentialHistogram, Gauge, Histogram, Series, Temporality
from tensormeter.ring.histogram_buckets import EXPLICIT, KIND, MAX_BUCKETS, SPARSE, TABLES, Table
from tensormeter.ring.layout import Stream

__all__ = [
    "NONFINITE_METRIC",
    "Distribution",
    "distribution_series",
    "distributions_in_items",
    "distributions_in_rows",
]

NONFINITE_METRIC: Final = "tensormeter.histogram.nonfinite"
"""Gauge that counts a distribution's infinities and NaNs, which no bucket can hold. Zero counts have no points."""

_NONFINITE_BINS: Final = {"-Inf": 0, "+Inf": -2, "NaN": -1}

_NO_STATISTICS: Final = np.full(3, np.nan)


class Distribution(NamedTuple):
    """A distribution of one row.

    Attributes:
        stream: Stream of the distribution.
        code: Code of the table that counted the values, or EXPLICIT.
        time: Time of the row.
        bins: Occupied bins of the table in ascending order, int64, shape (k,); not used for EXPLICIT.
        counts: Number of values in each of these bins, int64, shape (k,); all words of the column for EXPLICIT.
        statistics: Sum, minimum and maximum, float64, shape (3,).
    """

    stream: Stream
    code: str
    time: np.uint64
    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    statistics: NDArray[np.float64]


def distributions_in_rows(rows: Rows) -> Iterator[Distribution]:
    """Yield the distributions in rows with a layout, except those that the device never finished."""
    columns = [
        (column, rows.column(index), rows.lost_in(index))
        for index, column in enumerate(rows.layout.columns)
        if column.stream.kind == KIND
    ]
    statistics = {column.stream: (values, missing) for column, values, missing in columns if column.code in "dD"}
    for column, words, _ in columns:
        if column.code in "dD":
            continue
        values, missing = statistics.get(column.stream, (None, None))
        for row, time in enumerate(rows.times):
            if missing is None or not missing[row]:
                of_row = _NO_STATISTICS if values is None else values[row].astype(np.float64)
                yield _distribution(column.stream, column.code, time, words[row].astype(np.int64), of_row)


def distributions_in_items(rows: ItemRows, streams: Mapping[int, Stream]) -> Iterator[Distribution]:
    """Yield the distributions in rows that describe their own columns, except those that the device never finished."""
    chosen = np.flatnonzero(rows.kinds == DISTRIBUTION).tolist()
    places = {index: (int(rows.rows[index]), int(rows.streams[index])) for index in chosen}
    statistics = {place: index for index, place in places.items() if chr(rows.codes[index]) in "dD"}
    for index, place in places.items():
        if chr(rows.codes[index]) in "dD":
            continue
        own = statistics.get(place)
        if own is None or not rows.lost[own]:
            of_row = _NO_STATISTICS if own is None else rows.values_of(own).view(np.float64)
            time = rows.times[place[0]]
            yield _distribution(streams[place[1]], chr(rows.codes[index]), time, rows.values_of(index), of_row)


def _distribution(
    stream: Stream, code: str, time: np.uint64, words: NDArray[np.int64], statistics: NDArray[np.float64]
) -> Distribution:
    if code == EXPLICIT:
        return Distribution(stream, code, time, words[:0], words, statistics)
    if code == SPARSE:
        return Distribution(stream, chr(int(words[0])), time, words[1:] >> 32, words[1:] & 0xFFFFFFFF, statistics)
    counts = words.view(np.int32)
    bins = np.flatnonzero(counts)
    return Distribution(stream, code, time, bins, counts[bins].astype(np.int64), statistics)


def distribution_series(distributions: Iterable[Distribution]) -> list[Series]:
    """Return the series of distributions, each in time order."""
    groups: defaultdict[tuple[Stream, str, int], list[Distribution]] = defaultdict(list)
    for item in distributions:
        groups[item.stream, item.code, len(item.counts) if item.code == EXPLICIT else 0].append(item)
    series: list[Series] = []
    for (stream, code, _), items in groups.items():
        items.sort(key=lambda item: item.time)
        series += _explicit(stream, items) if code == EXPLICIT else _exponential(stream, TABLES[code], items)
    return series


def _exponential(stream: Stream, table: Table, items: Sequence[Distribution]) -> Iterator[Series]:
    side, zero_bin = table.buckets, table.buckets + 1
    scales, positives, negatives, zeros, totals = [], [], [], [], []
    for item in items:
        negative, positive = item.bins < zero_bin, (item.bins > zero_bin) & (item.bins < table.bins - 2)
        negative &= item.bins > 0
        sides = (
            (item.bins[positive] - zero_bin - 1, item.counts[positive]),
            (side - item.bins[negative][::-1], item.counts[negative][::-1]),
        )
        scale, *merged = _merge(sides, table)
        scales.append(scale)
        positives.append(merged[0])
        negatives.append(merged[1])
        zeros.append(int(item.counts[item.bins == zero_bin].sum()))
        totals.append(sum(int(counts.sum()) for _, counts in sides) + zeros[-1])
    yield ExponentialHistogram(
        **_common(stream, items),
        counts=np.array(totals, np.uint64),
        scales=np.array(scales, np.int64),
        zero_counts=np.array(zeros, np.uint64),
        zero_thresholds=np.full(len(items), table.zero_threshold),
        positive=_buckets(positives),
        negative=_buckets(negatives),
    )
    for kind, position in _NONFINITE_BINS.items():
        numbers = [int(item.counts[item.bins == position % table.bins].sum()) for item in items]
        there = [(item.time, number) for item, number in zip(items, numbers, strict=True) if number]
        if there:
            times, values = zip(*there, strict=True)
            attributes = {"tensormeter.metric": stream.name, "tensormeter.kind": kind}
            yield Gauge(
                NONFINITE_METRIC,
                np.array(times, np.uint64),
                np.array(values, np.int64),
                unit="{value}",
                attributes=attributes,
            )


_Bins = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Positions of occupied buckets on one side, in ascending order, and their counts."""


def _merge(
    sides: tuple[_Bins, _Bins], table: Table
) -> tuple[int, tuple[int, NDArray[np.int64]], tuple[int, NDArray[np.int64]]]:
    """Return the finest scale at which each side has at most MAX_BUCKETS, then (first index, counts) for each side.

    The merge is exact: bucket i of a scale lies in bucket ``i >> d`` of a scale that is lower by d.
    """
    coarser = 0
    while any(
        len(used) and _index(int(used[-1]), table, coarser) - _index(int(used[0]), table, coarser) >= MAX_BUCKETS
        for used, _ in sides
    ):
        coarser += 1
    positive, negative = (_side(used, counts, table, coarser) for used, counts in sides)
    return table.scale - coarser, positive, negative


def _side(
    used: NDArray[np.int64], counts: NDArray[np.int64], table: Table, coarser: int
) -> tuple[int, NDArray[np.int64]]:
    if len(used) == 0:
        return 0, np.empty(0, np.int64)
    indices = used + table.first_index >> coarser
    offset = int(indices[0])
    merged: NDArray[np.int64] = np.zeros(int(indices[-1]) - offset + 1, np.int64)
    np.add.at(merged, indices - offset, counts)
    return offset, merged


def _index(position: int, table: Table, coarser: int) -> int:
    """Return the index of the bucket into which a table's bucket is merged."""
    return position + table.first_index >> coarser


def _buckets(sides: Iterable[tuple[int, NDArray[np.int64]]]) -> Buckets:
    offsets, counts = zip(*sides, strict=True)
    return Buckets(np.array(offsets, np.int64), [count.astype(np.uint64) for count in counts])


def _explicit(stream: Stream, items: Sequence[Distribution]) -> Iterator[Series]:
    """Yield one series for each stretch of points with the same edges.

    Values outside the edges are not counted, so the open buckets below and above are empty.
    """
    words = np.stack([item.counts for item in items])
    buckets = words.shape[1] // 2
    bounds, counts = words[:, : buckets + 1].view(np.float64), words[:, buckets + 1 :].astype(np.uint64)
    starts = [0, *(np.flatnonzero((bounds[1:] != bounds[:-1]).any(axis=1)) + 1).tolist(), len(bounds)]
    for start, end in pairwise(starts):
        if start < end:
            yield Histogram(
                **_common(stream, items[start:end]),
                counts=counts[start:end].sum(axis=1),
                bounds=bounds[start],
                buckets=np.pad(counts[start:end], ((0, 0), (1, 1))),
            )


def _common(stream: Stream, items: Sequence[Distribution]) -> dict[str, Any]:
    times = np.array([item.time for item in items], np.uint64)
    statistics = np.stack([item.statistics for item in items])
    return {
        "name": stream.name,
        "times": times,
        "unit": stream.unit,
        "description": stream.description,
        "attributes": dict(stream.attributes),
        "start_times": times,
        "sums": statistics[:, 0],
        "minima": statistics[:, 1],
        "maxima": statistics[:, 2],
        "temporality": Temporality.DELTA,
    }
