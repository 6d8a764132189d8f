"""States of runs and processes in the SQLite file."""

import sqlite3

from tensormeter.otlp.batch import Event
from tensormeter.server.store.rules.lifecycle import (
    NUMBERED,
    ProcessLifecycle,
    config_time,
    lifecycle_update,
    run_lifecycle,
)
from tensormeter.server.store.sqlite.integrity.seals import PROCESS, is_sound
from tensormeter.server.store.sqlite.tables.results import write_results

__all__ = ["apply_event", "refresh_run"]


def apply_event(
    connection: sqlite3.Connection, run: int, process: int, event: Event, time: int, *, first: bool
) -> bool:
    """Write the changes that an event makes to its run and process, inside the caller's transaction.

    Returns:
        Whether the run needs `refresh_run`, which reads all processes of the run. Call that function once per request.
    """
    update = lifecycle_update(event)
    if update.losses is not None:
        connection.execute("UPDATE process SET losses = ? WHERE id = ?", (update.losses, process))
    if update.config is not None:
        moment = config_time(event, time, first=first)
        connection.execute(
            "UPDATE run SET config = ?, config_time = ? WHERE id = ? AND config_time <= ?",
            (update.config, moment, run, moment),
        )
    write_results(connection, run, update, time)
    if update.starts:
        connection.execute("UPDATE process SET started = max(ifnull(started, 0), ?) WHERE id = ?", (time, process))
        connection.execute("UPDATE run SET started = min(ifnull(started, ?), ?) WHERE id = ?", (time, time, run))
        labels = {"tags": update.tags, "grp": update.group, "job_type": update.job_type, "notes": update.notes}
        for column, value in labels.items():
            if value is not None:  # do not overwrite a value set by a user
                connection.execute(f"UPDATE run SET {column} = ifnull({column}, ?) WHERE id = ?", (value, run))
    elif update.end_state is not None:
        connection.execute(
            "UPDATE process SET ended = ?, end_state = ? WHERE id = ? AND ifnull(ended, 0) <= ?",
            (time, update.end_state, process, time),
        )
    return update.starts or update.end_state is not None


def refresh_run(connection: sqlite3.Connection, run: int) -> None:
    """Update a run's state, attempt and end from its processes."""
    rows = connection.execute(
        f"SELECT instr(resource, ?) > 0, {PROCESS.selection} FROM process WHERE run = ?", (NUMBERED, run)
    ).fetchall()
    processes = [ProcessLifecycle(row[4], row[5], row[6], row[7], bool(row[0])) for row in rows]
    started = min((process.started for process in processes if process.started is not None), default=None)
    connection.execute(
        "UPDATE run SET state = ?, attempt = ?, ended = ?, started = ifnull(started, ?), stalled = 0 WHERE id = ?",
        (*run_lifecycle(processes), started, run),
    )
    if not all(
        is_sound(row[-1], *row[1:-1]) for row in rows
    ):  # a state derived from damaged rows also counts as damaged
        connection.execute("UPDATE run SET tally = tally + 1 WHERE id = ?", (run,))
