"""Columns of many runs, for filtering and sorting."""

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.results import Results
from tensormeter.server.store.models.runs import RunTable
from tensormeter.server.store.rules.lifecycle import present_state
from tensormeter.server.store.rules.run_fields import PARTS, chosen_values, dig, parts_needed, summary_fields
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.step_lookup import StepLookup
from tensormeter.server.store.sqlite.tables.results import read_results
from tensormeter.server.store.sqlite.tables.runs import memory_totals, totals_of

__all__ = ["load_table", "metrics_needed"]

_SUMMARY_COLUMNS: Final = "count, numbers, total, minimum, maximum, last_time, last_word, last_integer, last_step"

_ROWS: Final = 64
"""Number of rows between two calls of `check`."""

_T = TypeVar("_T")

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
    "job_type": "ifnull(job_type, '')",
    "tags": "ifnull(tags, '[]')",
    "notes": "ifnull(notes, '')",
    "archived": "archived",
    "processes": "(SELECT count(*) FROM process WHERE process.run = run.id)",
}

_COLUMNS_OF: Final = {name: (column,) for name, column in _BASE.items()} | {
    "state": ("state", "updated", "stalled"),
    "points": ("points",),
}
_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {"tags": json.loads, "archived": bool}


def load_table(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    project: str | None,
    fields: Sequence[str],
    stall_after: float,
    *,
    check: Check = no_check,
    runs: Collection[int] | None = None,
) -> RunTable:
    """Load fields of all runs; see `Store.table`."""
    # Read only the required columns, because there may be many runs.
    needed = [column for name in fields for column in _COLUMNS_OF.get(name, ())]
    names = ["id", *dict.fromkeys(needed)]
    condition = f"{_chosen(runs, 'run.id')} NOT deleted" + ("" if project is None else " AND project = :project")
    rows = connection.execute(
        f"SELECT {', '.join(names)} FROM run WHERE {condition} ORDER BY id", {"project": project}
    ).fetchall()
    stored: Mapping[str, Sequence[Any]] = (
        dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    )
    loaded = [*stored["id"]]
    columns: dict[str, Sequence[Any]] = {}
    for name in fields:
        check()
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
        elif name == "lost":
            losses = _losses(connection, project, condition)
            columns[name] = [losses.get(run, 0) for run in loaded]
        elif name == "points":
            flushed = zip(loaded, stored["points"], strict=True)
            columns[name] = [
                points + sum(snapshot.points.get(run, 0) for snapshot in snapshots) for run, points in flushed
            ]
    keys = [name.removeprefix("config.") for name in fields if name.startswith("config.") and name != "config."]
    if keys:
        configs = _config_columns(connection, project, condition, keys, loaded, check)
        columns |= {f"config.{key}": column for key, column in configs.items()}
    parts_of = summary_fields(fields)
    results: dict[int, Results] = {}
    if any("value" in parts for parts in parts_of.values()):
        results = read_results(connection, project, condition)
    for metric, parts in parts_of.items():
        check()
        needed = parts_needed(metric, parts, results)
        values = _summary_parts(connection, snapshots, metric, needed, _chosen(runs, "run"))
        if "value" in parts:
            values["value"] = chosen_values(metric, values, results)
        for part in parts:
            columns[f"summary.{metric}.{part}"] = [*map(values[part].get, loaded)]
    return RunTable(loaded, columns)


def _losses(connection: sqlite3.Connection, project: str | None, condition: str) -> dict[int, int]:
    """Return the number of lost items of runs that lost any."""
    # Use total() because a sum() of integers could overflow.
    rows = connection.execute(
        "SELECT run.id, CAST(total(value) AS INTEGER) FROM run JOIN process ON process.run = run.id, json_each(losses)"
        f" WHERE {condition} AND losses != '{{}}' GROUP BY run.id",
        {"project": project},
    )
    return dict(rows)


def _chosen(runs: Collection[int] | None, column: str) -> str:
    """Return the beginning of a condition that limits rows to runs."""
    return "" if runs is None else f"{column} IN ({', '.join(map(str, runs))}) AND"


def metrics_needed(fields: Sequence[str]) -> set[str]:
    """Return the metrics whose memtable buffers `load_table` needs for these fields."""
    parts_of = summary_fields(fields)
    stepped = any("last_step" in parts for parts in parts_of.values())
    return {*parts_of, STEP_METRIC} if stepped else {*parts_of}


def _config_columns(
    connection: sqlite3.Connection,
    project: str | None,
    condition: str,
    keys: Sequence[str],
    runs: Sequence[int],
    check: Check,
) -> dict[str, list[Any]]:
    """Return each run's config values by key: under the full key, or else at its dotted path; None if neither exists."""
    rows = connection.execute(f"SELECT id, config FROM run WHERE {condition}", {"project": project})
    values: dict[str, dict[int, Any]] = {key: {} for key in keys}
    for run, text in _checked(rows, check):
        config = _parse(text)
        for key, of_key in values.items():
            of_key[run] = dig(config, key)
    return {key: [*map(of_key.get, runs)] for key, of_key in values.items()}


def _parse(text: str) -> Any:
    try:
        return msgspec.json.decode(text)  # several times as fast as `json`
    except ValueError:  # such as lone surrogates
        return json.loads(text)


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
    chosen: str,
) -> dict[str, dict[int, Any]]:
    """Return summary parts of one metric, by part and run. Reads only the required columns, to support many runs."""
    steps = StepLookup(connection, snapshots) if "last_step" in parts else None
    memory: dict[int, list[Totals]] = defaultdict(list)
    for run, _, totals in memory_totals(snapshots, steps, (metric,)):
        memory[run].append(totals)
    # Merging with points in memory requires all stored columns; otherwise, a few are enough.
    needed = (
        _SUMMARY_COLUMNS.split(", ") if memory else [column for part in parts for column in _SOURCES.get(part, (part,))]
    )
    names = ["run", *dict.fromkeys(needed)]
    rows = connection.execute(f"SELECT {', '.join(names)} FROM summary WHERE {chosen} metric = ?", (metric,)).fetchall()
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    values = {part: dict(zip(columns["run"], _part(columns, part), strict=True)) if rows else {} for part in parts}
    row_numbers = {run: number for number, run in enumerate(columns.get("run", ()))} if memory else {}
    for run, totals_of_run in memory.items():
        if run in row_numbers:
            totals_of_run.insert(0, totals_of(rows[row_numbers[run]][1:]))
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
