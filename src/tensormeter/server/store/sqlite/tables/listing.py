"""Lists of projects, processes and metrics, from catalog rows and points in memory."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.points import Newest
from tensormeter.server.store.models.runs import ProcessSummary, ProjectSummary
from tensormeter.server.store.models.series import MetricSummary
from tensormeter.server.store.rules.lifecycle import process_state
from tensormeter.server.store.sqlite.integrity.seals import PROCESS, RESOURCE, SERIES
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.step_lookup import StepLookup

__all__ = [
    "check_series",
    "list_losses",
    "list_metrics",
    "list_processes",
    "list_projects",
    "series_rows",
    "step_series",
]

_NAMES: Final = 500
"""Maximum number of names in a statement."""

_METRIC: Final = SERIES.columns.index("metric")


def list_projects(connection: sqlite3.Connection) -> list[ProjectSummary]:
    """See `Store.projects`."""
    rows = connection.execute(
        "SELECT project, count(*), max(updated) FROM run WHERE NOT deleted GROUP BY project ORDER BY project"
    )
    return [ProjectSummary(*row) for row in rows]


def list_processes(connection: sqlite3.Connection, run: int) -> list[ProcessSummary]:
    """See `Store.processes`."""
    processes = []
    for row in _processes(connection, run, f"{PROCESS.selection}, {RESOURCE.selection}"):
        _, _, process, attempt, started, ended, end_state, losses, *_ = row
        resource = row[-2]
        RESOURCE.verify(row[-3:], f"the resource of process {process!r} of run {run}")
        state = process_state(started, ended, end_state)
        processes.append(ProcessSummary(process, attempt, json.loads(resource), state, started, json.loads(losses)))
    return processes


def list_losses(connection: sqlite3.Connection, run: int) -> dict[str, int]:
    """See `Store.losses`."""
    losses: dict[str, int] = {}
    for row in _processes(connection, run, PROCESS.selection):
        for reason, count in json.loads(row[7]).items():
            losses[reason] = losses.get(reason, 0) + count
    return losses


def _processes(connection: sqlite3.Connection, run: int, columns: str) -> Iterator[Sequence[Any]]:
    """Read and verify a run's process rows. `columns` must begin with `PROCESS.selection`. Raises DamagedError."""
    width = len(PROCESS.columns) + 1
    for row in connection.execute(f"SELECT {columns} FROM process WHERE run = ? ORDER BY id", (run,)):
        PROCESS.verify(row[:width], f"the row of process {row[2]!r} of run {run}")
        yield row


def list_metrics(
    connection: sqlite3.Connection, snapshots: Sequence[MemtableSnapshot], rows: Sequence[Sequence[Any]]
) -> list[MetricSummary]:
    """Return the series of a run; see `Store.metrics`.

    Args:
        connection: Connection to read steps with.
        snapshots: Points in memory of these series and of the run's step series.
        rows: Rows from `series_rows`.
    """
    steps = StepLookup(connection, snapshots)
    # Neighboring series share bundles, so read them in the order of their IDs.
    metrics = {row[0]: _metric(row, snapshots, steps) for row in sorted(rows, key=lambda row: row[0])}
    return [metrics[row[0]] for row in rows]


def series_rows(connection: sqlite3.Connection, run: int, metrics: Sequence[str] | None) -> list[Sequence[Any]]:
    """Return the rows of a run's series, for the given metrics or for all, after verifying its processes.

    Raises:
        DamagedError: A row is damaged or missing.
    """
    for _ in _processes(connection, run, PROCESS.selection):
        pass
    if metrics is None:
        return _series(connection, run)
    rows: list[Sequence[Any]] = []
    for first in range(0, len(metrics), _NAMES):
        some = metrics[first : first + _NAMES]
        rows += connection.execute(
            f"SELECT {SERIES.selection}, process.process, process.attempt FROM process CROSS JOIN series ON series.process = process.id"
            f" WHERE run = ? AND metric IN ({', '.join('?' * len(some))})",
            (run, *some),
        )
    kind, scope, attributes = (SERIES.columns.index(name) for name in ("kind", "scope", "attributes"))
    rows.sort(key=lambda row: (row[_METRIC], row[-2], row[attributes], row[kind], row[scope]))
    return rows


def step_series(connection: sqlite3.Connection, run: int) -> set[int]:
    """Return the series that contain the steps of a run."""
    rows = connection.execute(
        "SELECT series.id FROM process CROSS JOIN series ON series.process = process.id"
        " WHERE run = ? AND metric = ? AND kind = 'gauge'",
        (run, STEP_METRIC),
    )
    return {row[0] for row in rows}


def check_series(connection: sqlite3.Connection, run: int) -> None:
    """Verify the rows of all processes and series of a run. Raises DamagedError if a row is damaged or missing."""
    for row in _series(connection, run):
        _verify(row)
    for _ in _processes(connection, run, PROCESS.selection):
        pass


def _series(connection: sqlite3.Connection, run: int) -> list[Sequence[Any]]:
    rows = connection.execute(
        f"SELECT {SERIES.selection}, process.process, process.attempt FROM process JOIN series ON series.process = process.id WHERE run = ?"
        " ORDER BY metric, process.process, attributes, kind, scope",
        (run,),
    ).fetchall()
    counted = connection.execute("SELECT series FROM run WHERE id = ?", (run,)).fetchone()
    if counted is not None and counted[0] != len(rows):
        raise DamagedError(f"run {run} has {counted[0]} series, but only {len(rows)} were found", named=True)
    return rows


def _verify(row: Sequence[Any]) -> None:
    SERIES.verify(row[: len(SERIES.columns) + 1], f"the row of series {row[0]}", series=row[0])


def _metric(row: Sequence[Any], snapshots: Sequence[MemtableSnapshot], steps: StepLookup) -> MetricSummary:
    _verify(row)
    series, process, metric, kind_text, scope, attributes, unit, description, points, *last = row[: len(SERIES.columns)]
    name, attempt = row[-2:]
    newest: Newest | None = None if last[0] is None else (last[0], last[1], bool(last[2]))
    step = last[3]
    for snapshot in snapshots:
        buffer = snapshot.series.get(series)
        if buffer is not None:
            points += buffer.n
            if newest is None or buffer.newest[0] > newest[0]:  # the first of several points with equal times wins
                newest = buffer.newest
                step = steps.at(process, newest[0])
    kind = parse_kind(kind_text)
    return MetricSummary(
        metric=metric,
        kind=kind,
        process=name,
        attempt=attempt,
        attributes=json.loads(attributes),
        unit=unit,
        description=description,
        points=points,
        last=None if newest is None or not kind.numeric else _number(newest),
        last_time=None if newest is None else newest[0],
        last_step=step,
        scope=scope,
    )


def _number(newest: Newest) -> int | float:
    return newest[1] if newest[2] else float(np.int64(newest[1]).view(np.float64))
