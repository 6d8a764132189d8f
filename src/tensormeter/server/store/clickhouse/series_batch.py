"""The new points of one commit, as columns, and the rows that ClickHouse stores of them."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.keys import invert, steps_key
from tensormeter.server.store.clickhouse.native import NativeBlock, encode_columns, encode_texts
from tensormeter.server.store.clickhouse.pending_request import Request
from tensormeter.server.store.clickhouse.process_updates import NEVER
from tensormeter.server.store.clickhouse.rowbinary import encode_rows
from tensormeter.server.store.clickhouse.stretches import SeriesIdentity, Stretches
from tensormeter.server.store.models.points import Blobs, Column, Points, steps_at

__all__ = [
    "TIME_TYPE",
    "Filled",
    "SeriesBatch",
    "StepsByProcess",
    "arrival_columns",
    "encode_blobs",
    "encode_catalog",
    "encode_gaps",
    "encode_points",
    "encode_summaries",
    "leave_out_known",
    "steps_of",
]

CATALOG_COLUMNS: Final = (
    "run",
    "metric",
    "series",
    "process",
    "kind",
    "scope",
    "attributes",
    "unit",
    "description",
)
SUMMARY_COLUMNS: Final = ("run", "series", "minimum", "maximum", "last", "first_step")
POINT_COLUMNS: Final = ("run", "series", "time", "word", "integer", "dense", "precedence", "received")
BLOB_COLUMNS: Final = ("run", "series", "time", "data", "precedence", "received")
GAP_COLUMNS: Final = {"run": "Q", "series": "Q", "time": "q", "precedence": "Q", "received": "I"}
_ROWS: Final = 200_000
"""Maximum number of points in one insert. The points take 10 MB. Encoding and sending each make another copy."""

_LOOKED_UP: Final = 10_000
_KNOWN: Final = np.dtype([("series", "<u8"), ("time", "<i8")])
TIME_TYPE: Final = "DateTime64(9, 'UTC')"
_LAST: Final = "Tuple(Int64, Int64, UInt8, UInt8, Int64, UInt64)"

StepsByProcess = Mapping[tuple[int, str], Points]
"""Points of the step series in a commit, by run and process."""


class SeriesBatch:
    """The points of one commit, numbers or distributions, in order of run, series and time, with distinct times. There are n series.

    Attributes:
        runs: uint64, shape (n,): keys of the runs.
        keys: uint64, shape (n,): keys of the series.
        points: Points.
        series: int64, as long as `points`: index of each point's series, ascending.
    """

    def __init__(self, stretches: Sequence[tuple[Request, Stretches]]) -> None:
        """Sort the points of stretches that contain the same kind of points."""
        self._stretches = stretches
        parts = [part for _, part in stretches]
        self._firsts = np.cumsum([0, *(len(part.keys) for part in parts)])
        """Index of the first stretch of each part."""

        keys = np.concatenate([part.keys for part in parts])
        runs = np.repeat(np.array([part.run for part in parts], np.uint64), np.diff(self._firsts))
        counts = np.concatenate([part.counts for part in parts])
        order = np.lexsort((keys, runs))
        begins = np.ones(len(order), np.bool_)
        begins[1:] = (keys[order][1:] != keys[order][:-1]) | (runs[order][1:] != runs[order][:-1])
        ranks = np.cumsum(begins) - 1
        self._series_of = np.empty(len(order), np.int64)
        """Index of the series of each stretch."""

        self._series_of[order] = ranks
        self.origins = order[begins]
        """Index of the first stretch of each series. The sort is stable."""

        self.runs, self.keys = runs[self.origins], keys[self.origins]
        points = type(parts[0].points).concat([part.points for part in parts])
        if not np.array_equal(order, np.arange(len(order))):
            points = points[_expand(np.cumsum(counts) - counts, counts, order)]
        self.series = np.repeat(ranks, counts[order])
        self.points: Column = points
        same = self.series[1:] == self.series[:-1]
        if np.any(same & (points.times[1:] <= points.times[:-1])):
            self._sort()

    def __len__(self) -> int:
        return len(self.keys)

    def identify(self, series: int) -> SeriesIdentity:
        """Return the description of a series."""
        stretch = int(self.origins[series])
        part = int(np.searchsorted(self._firsts, stretch, "right")) - 1
        return self._stretches[part][1].identify(stretch - int(self._firsts[part]))

    def select(self, points: NDArray[np.bool_]) -> None:
        """Keep only some of the points. Series may lose all of their points."""
        self.points, self.series = self.points[points], self.series[points]

    def refuse(self, series: NDArray[np.bool_], reason: str) -> None:
        """Remove the points of some series, and count them as refused in their requests."""
        refused = series[self._series_of]
        for (request, part), first in zip(self._stretches, self._firsts.tolist(), strict=False):
            count = int(part.counts[refused[first : first + len(part.counts)]].sum())
            if count:
                request.rejections[reason] += count
        self.select(~series[self.series])

    def filled(self) -> "Filled":
        """Return the series that have points."""
        starts = np.flatnonzero(np.concatenate(([True], self.series[1:] != self.series[:-1])))
        if not len(self.series):
            starts = starts[:0]
        ends = np.append(starts[1:], len(self.series))
        return Filled(self.series[starts], starts, ends)

    def first_times(self) -> NDArray[np.int64]:
        """Return the time of each series' first point; the highest time for a series without points."""
        filled = self.filled()
        times = np.full(len(self), np.iinfo(np.int64).max)
        times[filled.series] = self.points.times[filled.starts]
        return times

    def processes(self) -> tuple[list[tuple[int, str]], NDArray[np.int64]]:
        """Return the processes as pairs (run, process), and the index of each series' process."""
        processes: dict[tuple[int, str], int] = {}
        numbers = [processes.setdefault((part.run, part.source.process), len(processes)) for _, part in self._stretches]
        of_stretch = np.repeat(np.array(numbers, np.int64), np.diff(self._firsts))
        return list(processes), of_stretch[self.origins]

    def parts_of_runs(self) -> Iterator[tuple[int, slice]]:
        """Yield each run with the range of its series."""
        firsts = np.flatnonzero(np.concatenate(([True], self.runs[1:] != self.runs[:-1])))
        for first, end in zip(firsts.tolist(), [*firsts[1:].tolist(), len(self.runs)], strict=True):
            yield int(self.runs[first]), slice(first, end)

    def undescribed(
        self, find: Callable[[NDArray[np.uint64]], NDArray[np.int64]]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Return the series with points whose `Stretches.described` is unknown, and those hashes.

        Args:
            find: Function that returns 0 for unknown hashes.
        """
        hashes = np.concatenate([part.described for _, part in self._stretches])[self.origins]
        series = self.filled().series
        series = series[find(hashes[series]) == 0]
        return series, hashes[series]

    def _sort(self) -> None:
        order = np.lexsort((self.points.times, self.series))
        times, series = self.points.times[order], self.series[order]
        distinct = np.ones(len(order), np.bool_)
        distinct[1:] = (times[1:] != times[:-1]) | (series[1:] != series[:-1])
        kept = order[distinct]
        self.points, self.series = self.points[kept], self.series[kept]


@dataclass(frozen=True, eq=False)
class Filled:
    """The series of a batch that have points, with the index of the first point and of the point after the last one."""

    series: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def _expand(starts: NDArray[np.int64], counts: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indexes of all points, if the stretches with these starts and counts are put in order."""
    lengths = counts[order]
    return np.repeat(starts[order] - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))


def leave_out_known(connection: Connection, batch: SeriesBatch, newest: NDArray[np.int64]) -> int:
    """Remove the points that are already stored, and return their number.

    If all points of a series are newer than its stored points, no lookup is necessary.

    Args:
        connection: Connection to ClickHouse.
        batch: Points.
        newest: int64: time of each series' newest stored point, or 0.
    """
    table = "points" if isinstance(batch.points, Points) else "distributions"
    late = np.flatnonzero(batch.first_times() <= newest)
    known = np.zeros(len(batch.series), np.bool_)
    for run in np.unique(batch.runs[late]).tolist():
        of_run = late[batch.runs[late] == np.uint64(run)]
        for at in range(0, len(of_run), _LOOKED_UP):
            part = of_run[at : at + _LOOKED_UP]
            chosen = np.flatnonzero(np.isin(batch.series, part))
            times, keys = batch.points.times[chosen], batch.keys[batch.series[chosen]]
            first, last = int(times.min()), int(min(times.max(), newest[part].max()))
            stored = connection.columns(
                f"SELECT series, time FROM {table} WHERE run = {run} AND series IN ({numbers(batch.keys[part].tolist())})"
                f" AND time BETWEEN fromUnixTimestamp64Nano({first}, 'UTC') AND fromUnixTimestamp64Nano({last}, 'UTC')",
                _KNOWN,
            )
            known[chosen] = _contained(keys, times, stored)
    batch.select(~known)
    return int(known.sum())


def _contained(keys: NDArray[np.uint64], times: NDArray[np.int64], stored: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return whether each pair of a key and a time is in `stored`."""
    order = np.lexsort((np.r_[np.zeros(len(stored), np.int8), np.ones(len(keys), np.int8)],
                        np.r_[stored["time"], times], np.r_[stored["series"], keys]))  # fmt: skip
    sorted_keys, sorted_times = np.r_[stored["series"], keys][order], np.r_[stored["time"], times][order]
    same = np.zeros(len(order), np.bool_)
    same[1:] = (sorted_keys[1:] == sorted_keys[:-1]) & (sorted_times[1:] == sorted_times[:-1])
    contained = np.zeros(len(order), np.bool_)
    contained[order] = same
    return contained[len(stored) :]


def steps_of(stretches: Sequence[tuple[Request, Stretches]]) -> StepsByProcess:
    """Return the points of step series, by run and process, with distinct times in ascending order."""
    parts: dict[tuple[int, str], list[Points]] = defaultdict(list)
    for _, part in stretches:
        if part.steps.any() and isinstance(part.points, Points):
            selected = np.repeat(part.steps, part.counts)
            parts[part.run, part.source.process].append(part.points[selected])
    return {process: Points.concat(columns).distinct() for process, columns in parts.items()}


def encode_catalog(batch: SeriesBatch, series: NDArray[np.int64]) -> NativeBlock:
    """Encode rows for the table `catalog`, one for each of these series."""
    identities = [batch.identify(index) for index in series.tolist()]
    processes, of_series = batch.processes()
    names = [processes[index][1] for index in of_series[series].tolist()]
    texts = {
        "process": names,
        "kind": [identity.kind for identity in identities],
        "scope": [identity.scope for identity in identities],
        "attributes": [identity.attributes for identity in identities],
        "unit": [identity.unit for identity in identities],
        "description": [identity.description for identity in identities],
    }
    return encode_columns(
        len(identities),
        [
            ("run", "UInt64", batch.runs[series]),
            ("metric", "String", encode_texts(identity.metric for identity in identities)),
            ("series", "UInt64", batch.keys[series]),
            *((name, "String", encode_texts(values)) for name, values in texts.items()),
        ],
    )


def encode_summaries(batch: SeriesBatch, steps: StepsByProcess, later: Collection[tuple[int, str]]) -> NativeBlock:
    """Encode rows for the table `summary`. Writing a row twice has the same effect as writing it once.

    Args:
        batch: Points of the commit.
        steps: Points of the step series in the commit.
        later: Processes in the second or a later attempt, as pairs (run, process). The rows of their series contain the lowest
            step.
    """
    filled = batch.filled()
    last = filled.ends - 1
    times = batch.points.times[last]
    if isinstance(batch.points, Points):
        values = batch.points.floats()
        missing = np.isnan(values)
        low = np.minimum.reduceat(np.where(missing, np.inf, values), filled.starts)
        high = np.maximum.reduceat(np.where(missing, -np.inf, values), filled.starts)
        words, integers = batch.points.words[last], batch.points.integers[last]
    else:
        low, high = np.full(len(last), np.inf), np.full(len(last), -np.inf)
        words, integers = np.zeros(len(last), np.int64), np.ones(len(last), np.bool_)
    processes, of_series = batch.processes()
    of_series = of_series[filled.series]
    stepped, step = np.zeros(len(last), np.bool_), np.zeros(len(last), np.int64)
    for number, process in enumerate(processes):
        if process in steps:
            chosen = np.flatnonzero(of_series == number)
            step[chosen], stepped[chosen] = steps_at(steps[process], times[chosen])
    first_steps = np.full(len(last), NEVER)
    for number, process in enumerate(processes):
        if process in later and process in steps:
            chosen = np.flatnonzero(of_series == number)
            counts = filled.ends - filled.starts
            logged, has_step = steps_at(steps[process], batch.points.times[_expand(filled.starts, counts, chosen)])
            firsts = np.cumsum(counts[chosen]) - counts[chosen]
            first_steps[chosen] = np.minimum.reduceat(np.where(has_step, logged, NEVER), firsts)
    step_series = np.array([steps_key(*process) for process in processes], np.uint64)[of_series]
    items = (times, words, integers.astype(np.uint8), stepped.astype(np.uint8), step, step_series)
    return encode_columns(
        len(last),
        [
            ("run", "UInt64", batch.runs[filled.series]),
            ("series", "UInt64", batch.keys[filled.series]),
            ("minimum", "Float64", low),
            ("maximum", "Float64", high),
            ("last", _LAST, b"".join([item.tobytes() for item in items])),
            ("first_step", "Int64", first_steps),
        ],
    )


def encode_points(batch: SeriesBatch, dense: NDArray[np.bool_], number: int, received: int) -> Iterator[NativeBlock]:
    """Encode rows for the table `points`, split into inserts of limited size.

    Args:
        batch: Points of the commit.
        dense: Whether each point is covered by a row of the table `rollup`.
        number: Arrival number of the commit.
        received: Time of arrival in Unix seconds.
    """
    if not isinstance(batch.points, Points):
        return
    for first in range(0, len(batch.points), _ROWS):
        points, series = batch.points[first : first + _ROWS], batch.series[first : first + _ROWS]
        yield encode_columns(
            len(points),
            [
                ("run", "UInt64", batch.runs[series]),
                ("series", "UInt64", batch.keys[series]),
                ("time", TIME_TYPE, points.times),
                ("word", "Int64", points.words),
                ("integer", "UInt8", points.integers.astype(np.uint8)),
                ("dense", "UInt8", dense[first : first + _ROWS].astype(np.uint8)),
                *arrival_columns(len(points), number, received),
            ],
        )


def encode_blobs(batch: SeriesBatch, number: int, received: int) -> NativeBlock:
    """Encode rows for the table `distributions`. `received` is in Unix seconds."""
    assert isinstance(batch.points, Blobs)
    return encode_columns(
        len(batch.points),
        [
            ("run", "UInt64", batch.runs[batch.series]),
            ("series", "UInt64", batch.keys[batch.series]),
            ("time", TIME_TYPE, batch.points.times),
            ("data", "String", encode_texts(batch.points.blobs)),
            *arrival_columns(len(batch.points), number, received),
        ],
    )


def encode_gaps(gaps: Mapping[tuple[int, int], NDArray[np.int64]], number: int, received: int) -> bytes:
    """Encode gaps, given as times by (run, series), as rows for the table `gap`. `received` is in Unix seconds."""
    rows = ((run, key, time, invert(number), received) for (run, key), times in gaps.items() for time in times.tolist())
    return encode_rows(GAP_COLUMNS, rows)


def arrival_columns(rows: int, number: int, received: int) -> list[tuple[str, str, NDArray[np.generic]]]:
    """Return the columns of rows that arrived in one commit; `received` is in Unix seconds."""
    return [
        ("precedence", "UInt64", np.full(rows, invert(number), np.uint64)),
        ("received", "DateTime('UTC')", np.full(rows, received, np.uint32)),
    ]
