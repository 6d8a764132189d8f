"""Points of one commit, series by series: without those that are there already, and what series keep of them."""

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
"""Points in one insert: 10 MB, of which encoding and sending make copies."""

_KNOWN: Final = np.dtype([("series", "<u8"), ("time", "<i8")])

_NO_NUMBERS: Final = (np.inf, -np.inf)
"""Minimum and maximum of a series that has nothing but NaN, or distributions."""


@dataclass(eq=False, slots=True)
class SeriesBatch:
    """Points of one series.

    Attributes:
        arrival: The first that had some.
        requests: Who sent them, and how many.
        points: Once joined: each time once. Once looked up: what is new.
    """

    run: int
    key: int
    arrival: Arrival
    parts: list[Column] = field(default_factory=list)
    requests: list[tuple[Request, int]] = field(default_factory=list)
    points: Column = field(default_factory=Points.empty)

    def join(self) -> None:
        """Make `points` of the parts."""
        self.points = type(self.parts[0]).concat(self.parts).distinct()

    @property
    def numeric(self) -> bool:
        """Whether they are numbers."""
        return isinstance(self.points, Points)


def known_series(connection: Connection, keys: Collection[tuple[int, int]]) -> dict[int, int]:
    """Of these (run, series): the time of the newest point of each that exists."""
    if not keys:
        return {}
    rows = connection.rows(
        f"SELECT series, max(tupleElement(last, 1)) FROM series WHERE run IN ({numbers({run for run, _ in keys})})"
        f" AND series IN ({numbers({key for _, key in keys})}) GROUP BY series"
    )
    return {row[0]: row[1] for row in rows}


def encode_gaps(gaps: Mapping[tuple[int, int], NDArray[np.int64]], number: int, received: int) -> bytes:
    """Rows of the table `gap`: times by (run, series); `received` in seconds."""
    rows = ((run, key, time, invert(number), received) for (run, key), times in gaps.items() for time in times.tolist())
    return encode_rows(GAP_COLUMNS, rows)


def leave_out_known(connection: Connection, incoming: Iterable[SeriesBatch], newest_known: Mapping[int, int]) -> int:
    """Take out points that are stored already; returns how many.

    Only series whose points do not all come after what is known are looked up.
    """
    late: dict[tuple[int, str], list[SeriesBatch]] = defaultdict(list)
    for one in incoming:
        if int(one.points.times[0]) <= newest_known.get(one.key, 0):
            late[one.run, "points" if one.numeric else "distributions"].append(one)
    left_out = 0
    for (run, table), listed in late.items():
        first = min(int(one.points.times[0]) for one in listed)
        last = max(min(int(one.points.times[-1]), newest_known[one.key]) for one in listed)
        found = connection.columns(
            f"SELECT series, time FROM {table} WHERE run = {run} AND series IN ({numbers(one.key for one in listed)})"
            f" AND time BETWEEN fromUnixTimestamp64Nano({first}, 'UTC') AND fromUnixTimestamp64Nano({last}, 'UTC')",
            _KNOWN,
        )
        for one in listed:
            known = np.isin(one.points.times, found["time"][found["series"] == one.key])
            one.points = one.points[~known]
            left_out += int(known.sum())
    return left_out


def encode_points(incoming: Iterable[SeriesBatch], number: int, received: int) -> Iterator[bytes]:
    """Rows of the table `points` for one insert after another, each of a bounded size; `received` in seconds."""
    rows = np.empty(_ROWS, _POINT)
    filled = 0
    for one in incoming:
        points = one.points
        if not isinstance(points, Points):
            continue
        first = 0
        while first < len(points):
            n = min(len(points) - first, _ROWS - filled)
            into, part = rows[filled : filled + n], points[first : first + n]
            into["run"], into["series"], into["time"] = one.run, one.key, part.times
            into["word"], into["integer"] = part.words, part.integers
            into["precedence"], into["received"] = invert(number), received
            first, filled = first + n, filled + n
            if filled == _ROWS:
                yield rows.tobytes()
                filled = 0
    if filled:
        yield rows[:filled].tobytes()


def encode_blobs(incoming: Iterable[SeriesBatch], number: int, received: int) -> bytes:
    """Rows of the table `distributions`; `received` in seconds."""
    rows = (
        (one.run, one.key, time, blob, invert(number), received)
        for one in incoming
        if isinstance(one.points, Blobs)
        for time, blob in zip(one.points.times.tolist(), one.points.blobs, strict=True)
    )
    return encode_rows(BLOB_COLUMNS, rows)


def series_rows(incoming: Collection[SeriesBatch]) -> list[list[Any]]:
    """Rows of the table `series`: what it keeps of these points. A repeated row changes nothing."""
    steps: dict[tuple[int, str], list[Points]] = defaultdict(list)
    for one in incoming:
        if one.arrival.metric == STEP_METRIC and one.arrival.kind == "gauge":
            steps[one.run, one.arrival.source.process] += [part for part in one.parts if isinstance(part, Points)]
    return [_series_row(one, steps) for one in incoming if len(one.points)]


def _series_row(one: SeriesBatch, steps: Mapping[tuple[int, str], list[Points]]) -> list[Any]:
    extremes = _NO_NUMBERS
    if isinstance(one.points, Points):
        totals = Totals.of(one.points)
        if totals.numbers:
            extremes = totals.minimum, totals.maximum
    time, word, integer = newest(one.points)
    step, stepped = 0, False
    process = one.arrival.source.process
    parts = steps.get((one.run, process))
    if parts:
        found, has = steps_at(Points.concat(parts).distinct(), np.array([time], np.int64))
        step, stepped = int(found[0]), bool(has[0])
    arrival = one.arrival
    return [
        *(one.run, one.key, arrival.metric, process),
        *(arrival.kind, arrival.scope, arrival.attributes, arrival.unit, arrival.description),
        *(*extremes, time, word, integer, stepped, step, steps_key(one.run, process)),
    ]
