"""Run rows: runs with their summaries, columns of many runs for filtering and sorting, and users' changes."""

import json
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.runs import RunChanges, RunSummary, RunTable, State, Summary
from tensormeter.server.store.rules.lifecycle import present_state
from tensormeter.server.store.rules.run_fields import PARTS, dig, summary_fields, summary_of
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.integrity.damage import skip_damaged
from tensormeter.server.store.sqlite.integrity.seals import PROCESS, RUN_TALLY, RUN_TEXTS, SUMMARY
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.step_lookup import StepLookup

__all__ = ["load_runs", "load_states", "load_summaries", "load_table", "metrics_needed", "update_run"]

_SUMMARY_COLUMNS: Final = "count, numbers, total, minimum, maximum, last_time, last_word, last_integer, last_step"

_FEW_METRICS: Final = 500
"""Number of requested metrics from which a statement reads all metrics between them instead of naming each one."""

_ROWS: Final = 64
"""Number of rows between two calls of `check`."""

_T = TypeVar("_T")

_PLAIN_KEY: Final = re.compile(r"[\w ./:@-]+")
"""Pattern for keys that need no escaping in the paths of SQLite's JSON functions."""


_SOURCES: Final = {
    "last": ("last_word", "last_integer"),
    "mean": ("total", "numbers"),
    "min": ("minimum",),
    "max": ("maximum",),
}
"""Columns from which each summary part is computed. A part that is not listed is a column of the same name."""

_BASE: Final = {
    "id": "run_id",
    "run_id": "run_id",
    "project": "project",
    "name": "ifnull(title, name)",
    "attempt": "attempt",
    "started": "ifnull(started, created)",
    "ended": "ended",
    "updated": "updated",
    "newest": "newest",
    "group": "ifnull(grp, '')",
    "tags": "ifnull(tags, '[]')",
    "notes": "ifnull(notes, '')",
    "archived": "archived",
    "processes": "(SELECT count(*) FROM process WHERE process.run = run.id)",
    # Use total() because a sum() of integers could overflow.
    "lost": "CAST((SELECT total(value) FROM process, json_each(losses) WHERE run = run.id AND losses != '{}') AS INTEGER)",
}

_COLUMNS_OF: Final = {name: (column,) for name, column in _BASE.items()} | {
    "state": ("state", "updated", "stalled"),
    "points": ("points",),
}
_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {"tags": json.loads, "archived": bool}


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
        for run, metric, totals in _in_memory(snapshots, steps, metrics):
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
        f"SELECT {RUN_TALLY.selection}, {RUN_TEXTS.selection}, {_BASE['processes']} FROM run WHERE id = ? AND NOT deleted",
        (run,),
    ).fetchone()
    if row is None:
        return
    width = len(RUN_TALLY.columns) + 1
    RUN_TALLY.verify(row[:width], f"the row of run {row[2]!r} (project {row[1]!r})")
    RUN_TEXTS.verify(row[width:-1], f"the texts of run {row[2]!r} (project {row[1]!r})")
    tally = dict(zip(RUN_TALLY.columns, row, strict=False))
    texts = dict(zip(RUN_TEXTS.columns, row[width:], strict=False))
    summaries = {} if metrics is not None and not metrics else _summaries(connection, run, metrics, memory)
    state, updated, created = tally["state"], tally["updated"], tally["created"]
    yield RunSummary(
        project=tally["project"],
        run_id=tally["run_id"],
        name=texts["name"] if texts["title"] is None else texts["title"],
        state=present_state(state, updated, stalled=tally["stalled"], now=now, stall_after=stall_after),
        attempt=tally["attempt"],
        created=created,
        started=created if tally["started"] is None else tally["started"],
        ended=tally["ended"],
        updated=updated,
        newest=tally["newest"],
        group=texts["grp"] or "",
        tags=json.loads(texts["tags"] or "[]"),
        notes=texts["notes"] or "",
        archived=bool(tally["archived"]),
        config=json.loads(texts["config"]),
        points=tally["points"] + sum(snapshot.points.get(run, 0) for snapshot in snapshots),
        processes=row[-1],
        lost=_lost(connection, run),
        summary=summaries,
    )


def load_summaries(
    connection: sqlite3.Connection, snapshots: Sequence[MemtableSnapshot], run: int, metrics: Collection[str]
) -> dict[str, Summary]:
    """Load summaries of one run; see `Store.summaries`."""
    memory: dict[str, list[Totals]] = defaultdict(list)
    wanted = frozenset(metrics)
    for _, metric, totals in _in_memory(snapshots, StepLookup(connection, snapshots), wanted):
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


def load_table(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    project: str | None,
    fields: Sequence[str],
    stall_after: float,
    *,
    check: Check = no_check,
) -> RunTable:
    """Load fields of all runs; see `Store.table`."""
    # Read only the required columns, because there may be many runs.
    needed = [column for name in fields for column in _COLUMNS_OF.get(name, ())]
    names = ["id", *dict.fromkeys(needed)]
    rows = connection.execute(
        f"SELECT {', '.join(names)} FROM run WHERE project = ifnull(?, project) AND NOT deleted", (project,)
    ).fetchall()
    stored: Mapping[str, Sequence[Any]] = (
        dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    )
    runs = [*stored["id"]]
    columns: dict[str, Sequence[Any]] = {}
    for name in fields:
        check()
        group, _, rest = name.partition(".")
        if name in _BASE:
            convert = _CONVERTERS.get(name)
            column = stored[_BASE[name]]
            columns[name] = [*column] if convert is None else [*map(convert, column)]
        elif name == "state":
            now = time.time_ns()
            triples = zip(stored["state"], stored["updated"], stored["stalled"], strict=True)
            columns[name] = [
                present_state(state, updated, stalled=stalled, now=now, stall_after=stall_after)
                for state, updated, stalled in triples
            ]
        elif name == "points":
            flushed = zip(runs, stored["points"], strict=True)
            columns[name] = [
                points + sum(snapshot.points.get(run, 0) for snapshot in snapshots) for run, points in flushed
            ]
        elif group == "config" and rest:
            columns[name] = _config_column(connection, project, rest, runs, check)
    for metric, parts in summary_fields(fields).items():
        check()
        values = _summary_parts(connection, snapshots, metric, parts)
        for part in parts:
            columns[f"summary.{metric}.{part}"] = [*map(values[part].get, runs)]
    return RunTable(runs, columns)


def metrics_needed(fields: Sequence[str]) -> set[str]:
    """Return the metrics whose memtable buffers `load_table` needs for these fields."""
    parts_of = summary_fields(fields)
    stepped = any("last_step" in parts for parts in parts_of.values())
    return {*parts_of, STEP_METRIC} if stepped else {*parts_of}


def _config_column(
    connection: sqlite3.Connection, project: str | None, key: str, runs: Sequence[int], check: Check
) -> list[Any]:
    """Return each run's config value under the full key, or else at its dotted path; None if neither exists."""
    if not _PLAIN_KEY.fullmatch(key):
        rows = connection.execute(
            "SELECT id, config FROM run WHERE project = ifnull(?, project) AND NOT deleted", (project,)
        )
        values = {run: dig(json.loads(config), key) for run, config in _checked(rows, check)}
    else:
        paths = ('$."' + key + '"', "$" + "".join(f'."{part}"' for part in key.split(".")))
        texts = connection.execute(
            # With two paths, SQLite returns a JSON array. A single value would lose booleans and digits of floats.
            "SELECT id, json_extract(config, ?, ?) FROM run WHERE project = ifnull(?, project) AND NOT deleted",
            (*paths, project),
        )
        values = {}
        for run, text in _checked(texts, check):
            full, dotted = json.loads(text)
            values[run] = dotted if full is None else full
    return [values.get(run) for run in runs]


def _checked(rows: Iterable[_T], check: Check) -> Iterator[_T]:
    for number, row in enumerate(rows):
        if not number % _ROWS:
            check()
        yield row


def _summary_parts(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    metric: str,
    parts: Sequence[str],
) -> dict[str, dict[int, Any]]:
    """Return summary parts of one metric, by part and run. Reads only the required columns, to support many runs."""
    steps = StepLookup(connection, snapshots) if "last_step" in parts else None
    memory: dict[int, list[Totals]] = defaultdict(list)
    for run, _, totals in _in_memory(snapshots, steps, (metric,)):
        memory[run].append(totals)
    # Merging with points in memory requires all stored columns; otherwise, a few are enough.
    needed = (
        _SUMMARY_COLUMNS.split(", ") if memory else [column for part in parts for column in _SOURCES.get(part, (part,))]
    )
    names = ["run", *dict.fromkeys(needed)]
    rows = connection.execute(f"SELECT {', '.join(names)} FROM summary WHERE metric = ?", (metric,)).fetchall()
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    values = {part: dict(zip(columns["run"], _part(columns, part), strict=True)) if rows else {} for part in parts}
    row_numbers = {run: number for number, run in enumerate(columns.get("run", ()))} if memory else {}
    for run, totals_of_run in memory.items():
        if run in row_numbers:
            totals_of_run.insert(0, _totals(rows[row_numbers[run]][1:]))
        merged = Totals.merge(totals_of_run)
        for part in parts:
            values[part][run] = getattr(merged, PARTS.get(part, part))
    return values


def _part(columns: Mapping[str, Sequence[Any]], part: str) -> Sequence[Any]:
    match part:
        case "last":
            words = columns["last_word"]
            floats = np.array(words, np.int64).view(np.float64).tolist()
            integers = columns["last_integer"]
            return [word if whole else number for word, whole, number in zip(words, integers, floats, strict=True)]
        case "mean":
            pairs = zip(columns["total"], columns["numbers"], strict=True)
            return [None if total is None or not n else total / n for total, n in pairs]
        case "min" | "max":
            return columns[PARTS[part]]
        case _:
            return columns[part]


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
    return {row[1]: _totals(row[2:-1]) for row in rows}


def _in_memory(
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


def _totals(row: Sequence[Any]) -> Totals:
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
        "archived": changes.archived,
    }
    for column, value in columns.items():
        if value is not None:
            connection.execute(f"UPDATE run SET {column} = ? WHERE id = ?", (value, run))
