"""Run rows: runs with their summaries, and users' changes."""

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.runs import RunChanges, RunSummary, State, Summary
from tensormeter.server.store.rules.lifecycle import present_state
from tensormeter.server.store.rules.run_fields import summary_of
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.integrity.damage import skip_damaged
from tensormeter.server.store.sqlite.integrity.seals import PROCESS, RUN_JOB, RUN_TALLY, RUN_TEXTS, SUMMARY
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.step_lookup import StepLookup
from tensormeter.server.store.sqlite.tables.results import load_result

__all__ = ["load_runs", "load_states", "load_summaries", "memory_totals", "totals_of", "update_run"]

_PROCESSES: Final = "(SELECT count(*) FROM process WHERE process.run = run.id)"

_FEW_METRICS: Final = 500
"""Number of requested metrics from which a statement reads all metrics between them instead of naming each one."""


def load_runs(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    runs: Sequence[int],
    metrics: Collection[str] | None,
    stall_after: float,
    *,
    damaged: list[str] | None = None,
) -> list[RunSummary]:
    """Load runs by row ID in the given order, without deleted runs.

    `metrics` and `damaged` are the same as for `Store.runs`.

    Raises:
        DamagedError: A run's data is damaged, and `damaged` is None. Otherwise, a message is added to `damaged`.
    """
    steps = StepLookup(connection, snapshots)
    memory: dict[int, dict[str, list[Totals]]] = defaultdict(lambda: defaultdict(list))
    metrics = None if metrics is None else frozenset(metrics)
    if metrics is None or metrics:
        for run, metric, totals in memory_totals(snapshots, steps, metrics):
            memory[run][metric].append(totals)
    now = time.time_ns()
    loaded: list[RunSummary] = []
    for run in runs:
        with skip_damaged(connection, damaged):
            loaded += _load(connection, snapshots, run, metrics, memory.get(run, {}), now=now, stall_after=stall_after)
    return loaded


def _load(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    run: int,
    metrics: Collection[str] | None,
    memory: Mapping[str, Sequence[Totals]],
    *,
    now: int,
    stall_after: float,
) -> Iterator[RunSummary]:
    """Load a run. Yields the run, or nothing if the run was deleted."""
    row = connection.execute(
        f"SELECT {RUN_TALLY.selection}, {RUN_TEXTS.selection}, {RUN_JOB.selection}, {_PROCESSES}"
        " FROM run WHERE id = ? AND NOT deleted",
        (run,),
    ).fetchone()
    if row is None:
        return
    owner, values = f"run {row[2]!r} (project {row[1]!r})", iter(row)
    fields: dict[str, Any] = {}
    for seal, part in ((RUN_TALLY, "row"), (RUN_TEXTS, "texts"), (RUN_JOB, "job type")):
        sealed = [*islice(values, len(seal.columns) + 1)]
        seal.verify(sealed, f"the {part} of {owner}")
        fields |= zip(seal.columns, sealed[:-1], strict=True)
    summaries = {} if metrics is not None and not metrics else _summaries(connection, run, metrics, memory)
    results, parent = load_result(connection, run)
    state, updated, created = fields["state"], fields["updated"], fields["created"]
    yield RunSummary(
        project=fields["project"],
        run_id=fields["run_id"],
        name=fields["name"] if fields["title"] is None else fields["title"],
        state=present_state(state, updated, stalled=fields["stalled"], now=now, stall_after=stall_after),
        attempt=fields["attempt"],
        created=created,
        started=created if fields["started"] is None else fields["started"],
        ended=fields["ended"],
        updated=updated,
        newest=fields["newest"],
        group=fields["grp"] or "",
        job_type=fields["job_type"] or "",
        tags=json.loads(fields["tags"] or "[]"),
        notes=fields["notes"] or "",
        archived=bool(fields["archived"]),
        config=json.loads(fields["config"]),
        points=fields["points"] + sum(snapshot.points.get(run, 0) for snapshot in snapshots),
        processes=row[-1],
        lost=_lost(connection, run),
        summary=summaries,
        results=results,
        parent=parent,
    )


def load_summaries(
    connection: sqlite3.Connection, snapshots: Sequence[MemtableSnapshot], run: int, metrics: Collection[str]
) -> dict[str, Summary]:
    """Load summaries of one run; see `Store.summaries`."""
    memory: dict[str, list[Totals]] = defaultdict(list)
    wanted = frozenset(metrics)
    for _, metric, totals in memory_totals(snapshots, StepLookup(connection, snapshots), wanted):
        memory[metric].append(totals)
    return _summaries(connection, run, wanted, memory)


def _summaries(
    connection: sqlite3.Connection,
    run: int,
    metrics: Collection[str] | None,
    memory: Mapping[str, Sequence[Totals]],
) -> dict[str, Summary]:
    stored = _stored(connection, run, metrics)
    for metric, parts in memory.items():
        stored[metric] = Totals.merge([*([stored[metric]] if metric in stored else []), *parts])
    for metric in _mixed(connection, run, stored) if stored else ():
        stored[metric] = stored[metric].without_statistics()
    return {metric: summary_of(stored[metric]) for metric in sorted(stored)}


def _lost(connection: sqlite3.Connection, run: int) -> int:
    """Return the number of items that a run's processes dropped."""
    lost = 0
    for row in connection.execute(
        f"SELECT {PROCESS.selection} FROM process WHERE run = ? AND losses != '{{}}'", (run,)
    ):
        PROCESS.verify(row, f"the row of process {row[2]!r} of run {run}")
        lost += sum(json.loads(row[7]).values())
    return lost


def _mixed(connection: sqlite3.Connection, run: int, metrics: Collection[str]) -> list[str]:
    """Return the given metrics whose series in the run differ in unit or kind."""
    few = len(metrics) < _FEW_METRICS
    condition = f"metric IN ({', '.join('?' * len(metrics))})" if few else "metric BETWEEN ? AND ?"
    rows = connection.execute(
        "SELECT metric FROM process CROSS JOIN series ON series.process = process.id"
        f" WHERE run = ? AND {condition} AND (kind = 'gauge' OR kind LIKE 'sum %') GROUP BY metric HAVING min(kind || ' ' || unit) < max(kind || ' ' || unit)",
        (run, *(metrics if few else (min(metrics), max(metrics)))),
    )
    return [row[0] for row in rows if row[0] in metrics]


def load_states(connection: sqlite3.Connection, runs: Collection[int], stall_after: float) -> dict[int, State]:
    """Return the current states of runs, by row ID."""
    now = time.time_ns()
    rows = connection.execute(
        f"SELECT id, state, updated, stalled FROM run WHERE NOT deleted AND id IN ({', '.join(map(str, runs))})"
    )
    return {row[0]: present_state(row[1], row[2], stalled=row[3], now=now, stall_after=stall_after) for row in rows}


def _stored(connection: sqlite3.Connection, run: int, metrics: Collection[str] | None) -> dict[str, Totals]:
    query = f"SELECT {SUMMARY.selection} FROM summary WHERE run = ?"
    if metrics is None:
        rows = connection.execute(query, (run,)).fetchall()
    elif len(metrics) >= _FEW_METRICS:
        between = connection.execute(f"{query} AND metric BETWEEN ? AND ?", (run, min(metrics), max(metrics)))
        rows = [row for row in between if row[1] in metrics]
    else:
        few = (connection.execute(f"{query} AND metric = ?", (run, metric)).fetchone() for metric in metrics)
        rows = [row for row in few if row is not None]
    for row in rows:
        SUMMARY.verify(row, f"the summary of metric {row[1]!r} of run {run}")
    return {row[1]: totals_of(row[2:-1]) for row in rows}


def memory_totals(
    snapshots: Sequence[MemtableSnapshot],
    steps: StepLookup | None,
    metrics: Collection[str] | None,
) -> list[tuple[int, str, Totals]]:
    """Return (run, metric, totals) for each series in the buffers."""
    entries = []
    for snapshot in snapshots:
        for buffer in snapshot.series.values():
            totals = buffer.totals() if metrics is None or buffer.metric in metrics else None
            if totals is not None:
                if steps is not None:
                    totals = replace(totals, last_step=steps.at(buffer.process, totals.last_time))
                entries.append((buffer.run, buffer.metric, totals))
    return entries


def totals_of(row: Sequence[Any]) -> Totals:
    """Return the totals in a row of the summary table, from `count` to `last_step`."""
    count, numbers, total, minimum, maximum, last_time, word, integer, step = row
    nan = float("nan")
    return Totals(
        count,
        numbers,
        nan if total is None else total,
        nan if minimum is None else minimum,
        nan if maximum is None else maximum,
        last_time,
        word,
        bool(integer),
        step,
    )


def update_run(connection: sqlite3.Connection, run: int, changes: RunChanges) -> None:
    """Write a user's changes inside the caller's transaction."""
    columns = {
        "title": changes.name,
        "tags": None if changes.tags is None else canonical_json(list(changes.tags)),
        "notes": changes.notes,
        "grp": changes.group,
        "job_type": changes.job_type,
        "archived": changes.archived,
    }
    for column, value in columns.items():
        if value is not None:
            connection.execute(f"UPDATE run SET {column} = ? WHERE id = ?", (value, run))
