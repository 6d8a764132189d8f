"""Lists of projects, runs and metrics: rows of the catalog plus what is still in memory."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store import LastValue, MetricSummary, ProcessSummary, ProjectSummary, RunSummary
from tensormeter.server.store.events import process_state, run_state
from tensormeter.server.store.heads import Layer, Newest
from tensormeter.server.store.points import Points
from tensormeter.server.store.reader import read_at, steps_at

__all__ = ["count_runs", "list_metrics", "list_projects", "list_runs", "load_run"]

_RUN_COLUMNS = "id, project, run_id, name, config, created, updated, points"


def list_projects(connection: sqlite3.Connection) -> list[ProjectSummary]:
    """All projects, by name."""
    rows = connection.execute("SELECT project, count(*), max(updated) FROM run GROUP BY project ORDER BY project")
    return [ProjectSummary(*row) for row in rows]


def count_runs(connection: sqlite3.Connection, project: str | None) -> int:
    """How many runs a project has, or all projects."""
    row = connection.execute("SELECT count(*) FROM run WHERE project = ifnull(?, project)", (project,)).fetchone()
    return int(row[0])


def list_runs(
    connection: sqlite3.Connection,
    layers: Sequence[Layer],
    project: str | None,
    limit: int,
    offset: int,
) -> list[RunSummary]:
    """A page of runs, newest first."""
    rows = connection.execute(
        f"SELECT {_RUN_COLUMNS} FROM run WHERE project = ifnull(?, project)"
        " ORDER BY created DESC, id DESC LIMIT ? OFFSET ?",
        (project, limit, offset),
    )
    return [_run(connection, layers, row) for row in rows.fetchall()]


def load_run(connection: sqlite3.Connection, layers: Sequence[Layer], run: int) -> RunSummary:
    """One run, by row id."""
    row = connection.execute(f"SELECT {_RUN_COLUMNS} FROM run WHERE id = ?", (run,)).fetchone()
    return _run(connection, layers, row)


def _run(connection: sqlite3.Connection, layers: Sequence[Layer], row: Sequence[Any]) -> RunSummary:
    run, project, run_id, name, config, created, updated, points = row
    processes = [
        ProcessSummary(process, json.loads(resource), process_state(started, ended, end_state))
        for process, resource, started, ended, end_state in connection.execute(
            "SELECT process, resource, started, ended, end_state FROM process WHERE run = ? ORDER BY id",
            (run,),
        )
    ]
    return RunSummary(
        project=project,
        run_id=run_id,
        name=name,
        state=run_state(process.state for process in processes),
        created=created,
        updated=updated,
        config=json.loads(config),
        points=points + sum(layer.points.get(run, 0) for layer in layers),
        processes=processes,
    )


def list_metrics(connection: sqlite3.Connection, layers: Sequence[Layer], run: int) -> list[MetricSummary]:
    """Every series of a run, by metric, process and attributes."""
    rows = connection.execute(
        "SELECT series.id, process.id, metric, process.process, attributes, unit, description, series.points,"
        " last_time, last_word, last_integer"
        " FROM process JOIN series ON series.process = process.id WHERE run = ?"
        " ORDER BY metric, process.process, attributes",
        (run,),
    ).fetchall()
    last = {row[0]: _newest(row[0], row[8:], layers) for row in rows}
    steps = _last_steps(connection, layers, rows, last)
    return [
        MetricSummary(
            metric=metric,
            process=name,
            attributes=json.loads(attributes),
            unit=unit,
            description=description,
            points=points + sum(layer.series[series].n for layer in layers if series in layer.series),
            last=_last_value(last[series], steps.get(process, {})),
        )
        for series, process, metric, name, attributes, unit, description, points, *_ in rows
    ]


def _newest(series: int, stored: Sequence[Any], layers: Sequence[Layer]) -> Newest | None:
    """The latest point of a series; of several at one time, the one that arrived first."""
    newest = None if stored[0] is None else (stored[0], stored[1], bool(stored[2]))
    for layer in layers:
        head = layer.series.get(series)
        if head is not None and (newest is None or head.newest[0] > newest[0]):
            newest = head.newest
    return newest


def _last_steps(
    connection: sqlite3.Connection,
    layers: Sequence[Layer],
    rows: Sequence[Sequence[Any]],
    last: dict[int, Newest | None],
) -> dict[int, dict[int, int]]:
    """For each process row the step at each time that is the last of one of its series."""
    times: dict[int, set[int]] = {}
    for series, process, *_ in rows:
        newest = last[series]
        if newest is not None:
            times.setdefault(process, set()).add(newest[0])
    steps: dict[int, dict[int, int]] = {}
    for series, process, metric, *_ in rows:
        if metric == STEP_METRIC and process in times:
            wanted = np.array(sorted(times[process]), np.int64)
            found, stepped = steps_at(read_at(connection, layers, series, wanted), wanted)
            pairs = zip(wanted[stepped].tolist(), found[stepped].tolist(), strict=True)
            steps.setdefault(process, {}).update(pairs)
    return steps


def _last_value(newest: Newest | None, steps: dict[int, int]) -> LastValue | None:
    if newest is None:
        return None
    time, word, integer = newest
    value = word if integer else Points.of(np.array([time]), np.array([word]).view(np.float64)).values()[0]
    return LastValue(time, steps.get(time), value)
