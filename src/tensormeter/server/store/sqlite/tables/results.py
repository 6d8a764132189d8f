"""Statements of scripts about the results and the parent of their runs."""

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.results import Definition, Results, merge_values
from tensormeter.server.store.rules.lifecycle import LifecycleUpdate
from tensormeter.server.store.sqlite.integrity.seals import RESULT

__all__ = ["load_result", "read_result_names", "read_results", "write_results"]


def write_results(connection: sqlite3.Connection, run: int, update: LifecycleUpdate, time: int) -> None:
    """Write what an event states about the results of its run, inside the caller's transaction."""
    if update.results is None and update.definitions is None and update.parent is None:
        return
    connection.execute("INSERT OR IGNORE INTO result (run) VALUES (?)", (run,))
    if update.results is not None:
        text, latest = connection.execute("SELECT summary, summary_time FROM result WHERE run = ?", (run,)).fetchone()
        stored, sent = json.loads(text), json.loads(update.results)
        merged = merge_values(stored, sent) if time >= latest else merge_values(sent, stored)
        connection.execute(
            "UPDATE result SET summary = ?, summary_time = ? WHERE run = ?",
            (canonical_json(merged), max(time, latest), run),
        )
    if update.definitions is not None:
        connection.execute(
            "UPDATE result SET definitions = ?, definitions_time = ? WHERE run = ? AND definitions_time <= ?",
            (update.definitions, time, run, time),
        )
    if update.parent is not None:
        connection.execute("UPDATE result SET parent = ? WHERE run = ?", (update.parent, run))


def load_result(connection: sqlite3.Connection, run: int) -> tuple[Results, Any]:
    """Return the results and the parent of a run. Raises DamagedError."""
    row = connection.execute(f"SELECT {RESULT.selection} FROM result WHERE run = ?", (run,)).fetchone()
    if row is None:
        return Results(), None
    RESULT.verify(row, f"the results of run {run}")
    _, values, _, definitions, _, parent, _ = row
    return Results(json.loads(values), json.loads(definitions)), json.loads(parent or "null")


def read_results(connection: sqlite3.Connection, project: str | None, condition: str) -> dict[int, Results]:
    """Return the results of those runs that have any, by row ID.

    Args:
        connection: Connection to read with.
        project: Value of the parameter `project`.
        condition: Condition on the rows of the table `run`.
    """
    rows = connection.execute(
        f"SELECT result.run, summary, definitions FROM run JOIN result ON result.run = run.id WHERE {condition}",
        {"project": project},
    )
    known: dict[str, list[Definition]] = {}
    results: dict[int, Results] = {}
    for run, values, text in rows:
        if text not in known:
            known[text] = json.loads(text)
        results[run] = Results(json.loads(values), known[text])
    return results


def read_result_names(connection: sqlite3.Connection, project: str | None, limit: int) -> Iterator[list[str]]:
    """Yield the names of the values that scripts wrote to the summaries of the newest runs."""
    rows = connection.execute(
        "SELECT summary FROM run JOIN result ON result.run = run.id WHERE project = ifnull(?, project) AND NOT deleted"
        " AND summary != '{}' ORDER BY run.id DESC LIMIT ?",
        (project, limit),
    )
    for (text,) in rows:
        yield [*json.loads(text)]
