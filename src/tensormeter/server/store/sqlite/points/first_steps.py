"""The first step of each metric in processes of the second or a later attempt. They decide which points are shadowed."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.number_blocks import hash_name
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.rules.ingest_blocks import BlockArrival
from tensormeter.server.store.rules.ingest_series import Arrival
from tensormeter.server.store.sqlite.integrity.seals import FIRST_STEP

__all__ = ["FirstSteps", "read_first_steps"]

_NEVER: Final = (1 << 63) - 1
_CACHED: Final = 1_000_000
"""Maximum number of metrics in the cache, which takes 16 bytes each."""

_UPDATE: Final = (
    "INSERT INTO first_step (process, metric, step, seq) SELECT :process, :metric, :step, :seq"
    " WHERE EXISTS (SELECT 1 FROM series WHERE process = :process AND metric = :metric)"
    " ON CONFLICT DO UPDATE SET step = excluded.step, seq = excluded.seq WHERE excluded.step < step"
)


@dataclass(frozen=True, eq=False)
class _Known:
    """Recorded steps of a process: hashes of the metrics' names in ascending order, and the lowest step of each."""

    names: NDArray[np.uint64]
    steps: NDArray[np.int64]

    def find(self, names: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the lowest step of each metric; a step that is higher than any other if none is recorded."""
        if not len(self.names):
            return np.full(len(names), _NEVER)
        index = np.minimum(np.searchsorted(self.names, names), len(self.names) - 1)
        return np.where(self.names[index] == names, self.steps[index], _NEVER)

    def add(self, names: NDArray[np.uint64], steps: NDArray[np.int64]) -> "_Known":
        """Return these steps and those of further metrics, which are distinct."""
        others = ~np.isin(self.names, names)
        names, steps = np.concatenate((self.names[others], names)), np.concatenate((self.steps[others], steps))
        order = np.argsort(names)
        return _Known(names[order], steps[order])


_NOTHING: Final = _Known(np.empty(0, np.uint64), np.empty(0, np.int64))


class FirstSteps:
    """A writer of first steps, with a cache of those that are recorded. Not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def forget(self) -> None:
        """Clear the cache, because rows may have disappeared."""
        self._known.clear()

    def record(
        self,
        connection: sqlite3.Connection,
        process: int,
        steps: Points,
        arrivals: Sequence[Arrival],
        blocks: Sequence[BlockArrival],
        seq: int,
    ) -> None:
        """Record the lowest step of each metric inside the caller's transaction. Points without a step are ignored.

        Args:
            connection: Connection to write with.
            process: Row ID of the process.
            steps: The request's points of `tensormeter.step`, with distinct times in ascending order.
            arrivals: The request's points of the process.
            blocks: The request's blocks of the process.
            seq: Number of the journal row that contains the request.
        """
        logged, stepped = steps_at(steps, steps.times)
        if not stepped.any():
            return
        lowest = int(logged[stepped].min())
        known = self._known.get(process, _NOTHING)
        named = np.array([hash_name(arrival.metric) for arrival in arrivals], np.uint64)
        found: dict[int, tuple[int, Arrival | BlockArrival, int]] = {}
        for index in np.flatnonzero(known.find(named) > lowest).tolist():
            arrival = arrivals[index]
            lows = _lowest(steps, arrival.points.times, np.array([len(arrival.points)]))
            _add(found, named[[index]], lows, arrival)
        for block in blocks:
            new = known.find(block.block.names) > lowest
            if new.any():
                part = replace(block, block=block.block.select(np.repeat(new, block.block.counts)))
                lows = _lowest(steps, part.block.times.view(np.int64), part.block.counts)
                _add(found, part.block.names, lows, part)
        names, lows = np.array([*found], np.uint64), np.array([low for low, *_ in found.values()], np.int64)
        lower = lows < known.find(names)
        rows = [
            {"process": process, "metric": metric, "step": low, "seq": seq}
            for (low, sent, stretch), is_lower in zip(found.values(), lower.tolist(), strict=True)
            if is_lower and (metric := _metric(sent, stretch)) is not None
        ]
        if not rows:
            return
        connection.executemany(_UPDATE, rows)
        if sum(len(other.names) for other in self._known.values()) + len(rows) > _CACHED:
            self._known.clear()
        self._known[process] = known.add(names[lower], lows[lower])


def _lowest(steps: Points, times: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lowest step of consecutive stretches with these numbers of points; `_NEVER` if no point has a step."""
    logged, stepped = steps_at(steps, times)
    return np.minimum.reduceat(np.where(stepped, logged, _NEVER), np.cumsum(counts) - counts)


def _add(
    found: dict[int, tuple[int, Arrival | BlockArrival, int]],
    names: NDArray[np.uint64],
    lows: NDArray[np.int64],
    sent: Arrival | BlockArrival,
) -> None:
    """Add the lowest step of each stretch to that of its metric, with its number among the stretches that were sent together."""
    for stretch, (name, low) in enumerate(zip(names.tolist(), lows.tolist(), strict=True)):
        if low < (found[name][0] if name in found else _NEVER):
            found[name] = low, sent, stretch


def _metric(sent: Arrival | BlockArrival, stretch: int) -> str | None:
    """Return the metric of a stretch; None if it is refused."""
    if isinstance(sent, Arrival):
        return sent.metric
    identity = next(sent.identify([stretch]))
    return None if isinstance(identity, str) else identity.metric


def read_first_steps(
    connection: sqlite3.Connection, run: int, metrics: Sequence[str]
) -> tuple[Mapping[str, Mapping[str, int]], int]:
    """Return the first steps of metrics by process and metric, and the last journal row that changed one of them.

    They are those of the processes in later attempts that have the metrics and log steps. If the steps of a metric arrived
    in other requests than its points, its first step is that of the process.

    Raises:
        DamagedError: A row is damaged.
    """
    if not metrics:
        return {}, 0
    rows = connection.execute(
        f"SELECT process.process, series.metric, process.first_step, {FIRST_STEP.selection} FROM process"
        " CROSS JOIN series ON series.process = process.id LEFT JOIN first_step"
        " ON first_step.process = process.id AND first_step.metric = series.metric"
        " WHERE run = ? AND attempt > 1 AND process.first_step IS NOT NULL"
        f" AND series.metric IN ({', '.join('?' * len(metrics))})",
        (run, *metrics),
    )
    steps: dict[str, dict[str, int]] = {}
    changed = 0
    for process, metric, step_of_process, *row in rows:
        _, _, step, seq, _ = row
        if step is not None:
            FIRST_STEP.verify(row, f"the first step of metric {metric!r} of process {process!r}")
            changed = max(changed, seq)
        steps.setdefault(process, {})[metric] = step_of_process if step is None else step
    return steps, changed
