"""Conversion of distributions in rows to OpenTelemetry histograms.

Each row's distribution becomes one point with delta temporality. The point's interval begins and ends at the time of
the row. Such empty intervals never overlap within a series, as OTLP requires. A start time of 0 would mean that the
start is unknown.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.lane_reader import Rows
from tensormeter.otlp.batch import Buckets, ExponentialHistogram, Gauge, Histogram, Series, Temporality
from tensormeter.ring.histogram_buckets import EXPLICIT, KIND, MAX_BUCKETS, TABLES, Table
from tensormeter.ring.layout import Stream

__all__ = ["NONFINITE_METRIC", "distribution_series"]

NONFINITE_METRIC: Final = "tensormeter.histogram.nonfinite"
"""Gauge that counts a distribution's infinities and NaNs, which no bucket can hold. Zero counts have no points."""

_NONFINITE_BINS: Final = {"-Inf": 0, "+Inf": -2, "NaN": -1}


class _Piece(NamedTuple):
    times: NDArray[np.uint64]
    words: NDArray[np.int64]
    statistics: NDArray[np.float64]


def distribution_series(stretches: Iterable[Rows]) -> list[Series]:
    """Return the series of all distributions in the given rows, each in time order."""
    pieces_of: defaultdict[tuple[Stream, str, int], list[_Piece]] = defaultdict(list)
    for rows in stretches:
        for stream, code, piece in _pieces(rows):
            pieces_of[stream, code, piece.words.shape[1]].append(piece)
    series: list[Series] = []
    for (stream, code, _), pieces in pieces_of.items():
        times, words, statistics = map(np.concatenate, zip(*pieces, strict=True))
        order = np.argsort(times, kind="stable")
        piece = _Piece(times[order], words[order], statistics[order])
        series += _explicit(stream, piece) if code == EXPLICIT else _exponential(stream, TABLES[code], piece)
    return series


def _pieces(rows: Rows) -> Iterator[tuple[Stream, str, _Piece]]:
    """Yield the counts and statistics of each distribution, except in rows that the device never finished."""
    columns = [
        (column, rows.column(index), rows.lost_in(index))
        for index, column in enumerate(rows.layout.columns)
        if column.stream.kind == KIND
    ]
    statistics = {column.stream: (values, missing) for column, values, missing in columns if column.code in "dD"}
    for column, words, _ in columns:
        if column.code in "dD":
            continue
        values, missing = statistics.get(column.stream, (np.full((len(words), 3), np.nan), None))
        there = np.ones(len(words), np.bool_) if missing is None else ~missing
        piece = _Piece(rows.times[there], words[there].astype(np.int64), values[there].astype(np.float64))
        yield column.stream, column.code, piece


def _exponential(stream: Stream, table: Table, piece: _Piece) -> Iterator[Series]:
    if len(piece.times) == 0:
        return
    counts = piece.words.view(np.int32).astype(np.int64)
    side = table.buckets
    negative, zero, positive = counts[:, side:0:-1], counts[:, side + 1], counts[:, side + 2 : -2]
    merged = [_merge(pair, table) for pair in zip(positive, negative, strict=True)]
    scales, positives, negatives = zip(*merged, strict=True)
    yield ExponentialHistogram(
        **_common(stream, piece),
        counts=(positive.sum(axis=1) + negative.sum(axis=1) + zero).astype(np.uint64),
        scales=np.array(scales, np.int64),
        zero_counts=zero.astype(np.uint64),
        zero_thresholds=np.full(len(zero), table.zero_threshold),
        positive=_buckets(positives),
        negative=_buckets(negatives),
    )
    for kind, position in _NONFINITE_BINS.items():
        numbers = counts[:, position]
        there = numbers > 0
        if there.any():
            attributes = {"tensormeter.metric": stream.name, "tensormeter.kind": kind}
            yield Gauge(NONFINITE_METRIC, piece.times[there], numbers[there], unit="{value}", attributes=attributes)


def _merge(
    sides: tuple[NDArray[np.int64], NDArray[np.int64]], table: Table
) -> tuple[int, tuple[int, NDArray[np.int64]], tuple[int, NDArray[np.int64]]]:
    """Return the finest scale at which each side has at most MAX_BUCKETS, then (first index, counts) for each side.

    The merge is exact: bucket i of a scale lies in bucket ``i >> d`` of a scale that is lower by d.
    """
    spans = []
    for counts in sides:
        used = np.flatnonzero(counts)
        spans.append((int(used[0]), int(used[-1])) if len(used) else None)
    coarser = 0
    while any(
        span and _index(span[1], table, coarser) - _index(span[0], table, coarser) >= MAX_BUCKETS for span in spans
    ):
        coarser += 1
    positive, negative = (_side(counts, span, table, coarser) for counts, span in zip(sides, spans, strict=True))
    return table.scale - coarser, positive, negative


def _side(
    counts: NDArray[np.int64], span: tuple[int, int] | None, table: Table, coarser: int
) -> tuple[int, NDArray[np.int64]]:
    if span is None:
        return 0, np.empty(0, np.int64)
    offset = _index(span[0], table, coarser)
    indices = (np.arange(span[0], span[1] + 1) + table.first_index >> coarser) - offset
    starts = np.flatnonzero(np.diff(indices, prepend=-1))
    return offset, np.add.reduceat(counts[span[0] : span[1] + 1], starts)


def _index(position: int, table: Table, coarser: int) -> int:
    """Return the index of the bucket into which a table's bucket is merged."""
    return position + table.first_index >> coarser


def _buckets(sides: Iterable[tuple[int, NDArray[np.int64]]]) -> Buckets:
    offsets, counts = zip(*sides, strict=True)
    return Buckets(np.array(offsets, np.int64), [count.astype(np.uint64) for count in counts])


def _explicit(stream: Stream, piece: _Piece) -> Iterator[Series]:
    """Yield one series for each stretch of points with the same edges.

    Values outside the edges are not counted, so the open buckets below and above are empty.
    """
    buckets = piece.words.shape[1] // 2
    bounds, counts = piece.words[:, : buckets + 1].view(np.float64), piece.words[:, buckets + 1 :].astype(np.uint64)
    starts = [0, *(np.flatnonzero((bounds[1:] != bounds[:-1]).any(axis=1)) + 1).tolist(), len(bounds)]
    for start, end in pairwise(starts):
        if start < end:
            part = _Piece(piece.times[start:end], piece.words[start:end], piece.statistics[start:end])
            yield Histogram(
                **_common(stream, part),
                counts=counts[start:end].sum(axis=1),
                bounds=bounds[start],
                buckets=np.pad(counts[start:end], ((0, 0), (1, 1))),
            )


def _common(stream: Stream, piece: _Piece) -> dict[str, Any]:
    return {
        "name": stream.name,
        "times": piece.times,
        "unit": stream.unit,
        "description": stream.description,
        "attributes": dict(stream.attributes),
        "start_times": piece.times,
        "sums": piece.statistics[:, 0],
        "minima": piece.statistics[:, 1],
        "maxima": piece.statistics[:, 2],
        "temporality": Temporality.DELTA,
    }
