"""The new points of one commit, by series, and the rows that describe these series."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.keys import invert, steps_key
from tensormeter.server.store.clickhouse.pending_request import Request
from tensormeter.server.store.clickhouse.rowbinary import encode_rows
from tensormeter.server.store.models.points import Blobs, Column, Points, newest, steps_at
from tensormeter.server.store.rules.ingest_series import Arrival
from tensormeter.server.store.rules.totals import Totals

__all__ = [
    "SeriesBatch",
    "encode_blobs",
    "encode_gaps",
    "encode_points",
    "known_series",
    "leave_out_known",
    "series_rows",
]

SERIES_COLUMNS: Final = {
    "run": "Q",
    "series": "Q",
    "metric": "s",
    "process": "s",
    "kind": "s",
    "scope": "s",
    "attributes": "s",
    "unit": "s",
    "description": "s",
    "minimum": "d",
    "maximum": "d",
    "last": "qqBBqQ",
}
_POINT: Final = np.dtype(
    [
        ("run", "<u8"),
        ("series", "<u8"),
        ("time", "<i8"),
        ("word", "<i8"),
        ("integer", "u1"),
        ("precedence", "<u8"),
        ("received", "<u4"),
    ]
)
POINT_COLUMNS: Final = tuple(_POINT.names or ())
GAP_COLUMNS: Final = {"run": "Q", "series": "Q", "time": "q", "precedence": "Q", "received": "I"}
BLOB_COLUMNS: Final = {"run": "Q", "series": "Q", "time": "q", "data": "b", "precedence": "Q", "received": "I"}
_ROWS: Final = 200_000
"""Maximum number of points in one insert. The points take 10 MB. Encoding and sending each make another copy."""

_KNOWN: Final = np.dtype([("series", "<u8"), ("time", "<i8")])

_NO_NUMBERS: Final = (np.inf, -np.inf)
"""Minimum and maximum of a series that contains only NaN or distributions."""


@dataclass(eq=False, slots=True)
class SeriesBatch:
    """The points of one series in one commit.

    Attributes:
        arrival: First arrival that contains points of the series.
        requests: Requests that contain points of the series, each with its number of points.
        points: Points from all parts, with distinct times, without those that `leave_out_known` removed.
    """

    run: int
    key: int
    arrival: Arrival
    parts: list[Column] = field(default_factory=list)
    requests: list[tuple[Request, int]] = field(default_factory=list)
    points: Column = field(default_factory=Points.empty)

    def join(self) -> None:
        """Join the parts into `points`."""
        self.points = type(self.parts[0]).concat(self.parts).distinct()

    @property
    def numeric(self) -> bool:
        """Whether the points are numbers."""
        return isinstance(self.points, Points)


def known_series(connection: Connection, keys: Collection[tuple[int, int]]) -> dict[int, int]:
    """Return the time of the newest point in each existing series. `keys` contains pairs (run, series)."""
    if not keys:
        return {}
    rows = connection.rows(
        f"SELECT series, max(tupleElement(last, 1)) FROM series WHERE run IN ({numbers({run for run, _ in keys})})"
        f" AND series IN ({numbers({key for _, key in keys})}) GROUP BY series"
    )
    return {row[0]: row[1] for row in rows}


def encode_gaps(gaps: Mapping[tuple[int, int], NDArray[np.int64]], number: int, received: int) -> bytes:
    """Encode gaps, given as times by (run, series), as rows for the table `gap`. `received` is in Unix seconds."""
    rows = ((run, key, time, invert(number), received) for (run, key), times in gaps.items() for time in times.tolist())
    return encode_rows(GAP_COLUMNS, rows)


def leave_out_known(connection: Connection, all_series: Iterable[SeriesBatch], newest_known: Mapping[int, int]) -> int:
    """Remove from each batch the points that are already stored, and return the number of removed points.

    If all points of a batch are newer than the stored points of the series, no lookup is necessary.
    """
    late: dict[tuple[int, str], list[SeriesBatch]] = defaultdict(list)
    for series in all_series:
        if int(series.points.times[0]) <= newest_known.get(series.key, 0):
            late[series.run, "points" if series.numeric else "distributions"].append(series)
    left_out = 0
    for (run, table), late_series in late.items():
        first = min(int(series.points.times[0]) for series in late_series)
        last = max(min(int(series.points.times[-1]), newest_known[series.key]) for series in late_series)
        stored = connection.columns(
            f"SELECT series, time FROM {table} WHERE run = {run} AND series IN ({numbers(series.key for series in late_series)})"
            f" AND time BETWEEN fromUnixTimestamp64Nano({first}, 'UTC') AND fromUnixTimestamp64Nano({last}, 'UTC')",
            _KNOWN,
        )
        for series in late_series:
            known = np.isin(series.points.times, stored["time"][stored["series"] == series.key])
            series.points = series.points[~known]
            left_out += int(known.sum())
    return left_out


def encode_points(all_series: Iterable[SeriesBatch], number: int, received: int) -> Iterator[bytes]:
    """Encode rows for the table `points`, split into inserts of limited size. `received` is in Unix seconds."""
    rows = np.empty(_ROWS, _POINT)
    filled = 0
    for series in all_series:
        points = series.points
        if not isinstance(points, Points):
            continue
        first = 0
        while first < len(points):
            n = min(len(points) - first, _ROWS - filled)
            into, part = rows[filled : filled + n], points[first : first + n]
            into["run"], into["series"], into["time"] = series.run, series.key, part.times
            into["word"], into["integer"] = part.words, part.integers
            into["precedence"], into["received"] = invert(number), received
            first, filled = first + n, filled + n
            if filled == _ROWS:
                yield rows.tobytes()
                filled = 0
    if filled:
        yield rows[:filled].tobytes()


def encode_blobs(all_series: Iterable[SeriesBatch], number: int, received: int) -> bytes:
    """Encode rows for the table `distributions`. `received` is in Unix seconds."""
    rows = (
        (series.run, series.key, time, blob, invert(number), received)
        for series in all_series
        if isinstance(series.points, Blobs)
        for time, blob in zip(series.points.times.tolist(), series.points.blobs, strict=True)
    )
    return encode_rows(BLOB_COLUMNS, rows)


def series_rows(all_series: Collection[SeriesBatch]) -> list[list[Any]]:
    """Return rows for the table `series`. Writing the same row twice has the same effect as writing it once."""
    steps: dict[tuple[int, str], list[Points]] = defaultdict(list)
    for series in all_series:
        if series.arrival.metric == STEP_METRIC and series.arrival.kind == "gauge":
            steps[series.run, series.arrival.source.process] += [
                part for part in series.parts if isinstance(part, Points)
            ]
    return [_series_row(series, steps) for series in all_series if len(series.points)]


def _series_row(series: SeriesBatch, steps: Mapping[tuple[int, str], list[Points]]) -> list[Any]:
    extremes = _NO_NUMBERS
    if isinstance(series.points, Points):
        totals = Totals.of(series.points)
        if totals.numbers:
            extremes = totals.minimum, totals.maximum
    time, word, integer = newest(series.points)
    step, stepped = 0, False
    process = series.arrival.source.process
    parts = steps.get((series.run, process))
    if parts:
        step_numbers, known = steps_at(Points.concat(parts).distinct(), np.array([time], np.int64))
        step, stepped = int(step_numbers[0]), bool(known[0])
    arrival = series.arrival
    return [
        *(series.run, series.key, arrival.metric, process),
        *(arrival.kind, arrival.scope, arrival.attributes, arrival.unit, arrival.description),
        *(*extremes, time, word, integer, stepped, step, steps_key(series.run, process)),
    ]
