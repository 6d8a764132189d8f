"""Migration of a file from an older version, in one transaction that adds tables and columns, and copies some rows."""

import json
import logging
import sqlite3
from typing import Final

from tensormeter.otlp.batch import STEP_METRIC, Event, Scope
from tensormeter.server.store.models.points import beginning
from tensormeter.server.store.rules.log_lines import LOG_LIMIT, prepare_line
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.points.segments import Segment, decode_segment
from tensormeter.server.store.sqlite.tables.log_lines import insert_lines
from tensormeter.server.store.sqlite.tables.summaries import add_totals

__all__ = ["migrate"]

_SEGMENT_COLUMNS: Final = "n, t_min, t_max, kind, times, words, integers"

_log = logging.getLogger(__name__)

_SEALS: Final = {
    "run": ("seal", "tally"),
    "process": ("seal", "resource_seal"),
    "series": ("directory", "seal"),
    "summary": ("seal",),
    "chunk": ("seal",),
    "sample": ("seal", "coarse_seal", "fine_seal"),
    "gap": ("seal",),
    "event": ("seal",),
    "batch": ("seal",),
    "journal": ("seal",),
}

_TABLES_1: Final = ("run", "process", "series", "chunk", "event", "batch", "journal")


def migrate(connection: sqlite3.Connection, version: int, schema: str, target: int) -> None:
    """Migrate a file from an older version. The older version cannot read the file afterwards.

    If the process is killed, the file has either the old version or the new one, never a mixture.

    Args:
        connection: Connection in autocommit mode.
        version: Version of the file, at least 1.
        schema: Statements that create the tables of the current version.
        target: Current version.
    """
    _log.warning("tensormeter: migrating the store from version %d to %d; this can take a while", version, target)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if version == 1:
            _from_1(connection, schema)
        elif version == 2:
            _from_2(connection)
        if 1 < version < 4:
            _from_3(connection, schema)
        if version > 1:
            _from_4(connection)
            _from_5(connection, schema)
            _from_6(connection, schema)
            _from_7(connection, schema)
            _from_8(connection, schema)
            _from_9(connection)
        if version < 9:
            _move_lines(connection)
            if version < 3:
                _first_steps(connection)
            _first_steps_of_metrics(connection)
        connection.execute(f"PRAGMA user_version = {target}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _from_1(connection: sqlite3.Connection, schema: str) -> None:
    """Migrate from version 1, which had only gauges, and no summaries, tags or media."""
    for index in ("run_by_run_id", "run_by_created", "chunk_by_series"):
        connection.execute(f"DROP INDEX {index}")
    connection.execute("PRAGMA legacy_alter_table = ON")  # so that other tables' references stay unchanged
    for table in _TABLES_1:
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for statement in _statements(schema):
        connection.execute(statement)
    connection.execute("PRAGMA legacy_alter_table = OFF")
    common = "id, project, run_id, name, config, config_time, created, updated, series, points"
    connection.execute(f"INSERT INTO run ({common}) SELECT {common} FROM old_run")
    common = "id, run, process, resource, started, ended, end_state"
    connection.execute(f"INSERT INTO process ({common}) SELECT {common} FROM old_process")
    common = "id, process, metric, attributes, unit, description, points, last_time, last_word, last_integer"
    connection.execute(
        f"INSERT INTO series ({common}, kind, scope) SELECT {common}, 'gauge', '' FROM old_series",
    )
    connection.execute(
        f"INSERT INTO chunk (id, series, seq, {_SEGMENT_COLUMNS}) SELECT id, series, seq, {_SEGMENT_COLUMNS} FROM old_chunk"
    )
    connection.execute(
        "INSERT INTO event (id, run, process, time, name, digest, body, attributes)"
        " SELECT old_event.id, run, process.id, time, name, digest, body, attributes"
        " FROM old_event JOIN process ON process.id = old_event.process",
    )
    common = "id, digest, received, rejected, message"
    connection.execute(f"INSERT INTO batch ({common}) SELECT {common} FROM old_batch")
    # A number must never be reused, even if the row with the last number has been deleted.
    connection.execute("INSERT INTO journal (seq, payload) SELECT seq, payload FROM old_journal")
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name IN ('journal', 'old_journal')").fetchall()
    for table in _TABLES_1:
        connection.execute(f"DROP TABLE old_{table}")
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'journal'")
    top = max((row[0] or 0 for row in last), default=0)
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('journal', ?)", (top,))
    _states(connection)
    _summaries(connection)


def _from_2(connection: sqlite3.Connection) -> None:
    """Migrate from version 2, which did not store the first steps of attempts and the times at which attempts began."""
    for column in ("first_step", "began", "began_seq"):
        connection.execute(f"ALTER TABLE process ADD COLUMN {column} INTEGER")


def _from_3(connection: sqlite3.Connection, schema: str) -> None:
    """Migrate from version 3, which had no rollups. The store builds them once it is open."""
    (statement,) = (candidate for candidate in _statements(schema) if "CREATE TABLE sample " in candidate)
    connection.execute(statement)


def _from_4(connection: sqlite3.Connection) -> None:
    """Migrate from version 4, which did not store severity, trace and span IDs, and scope of log records."""
    columns = {row[1] for row in connection.execute("PRAGMA table_info(event)")}
    if "record" not in columns:
        connection.execute("ALTER TABLE event ADD COLUMN record TEXT NOT NULL DEFAULT '{}'")


def _from_5(connection: sqlite3.Connection, schema: str) -> None:
    """Migrate from version 5, which had no gaps."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'gap'").fetchone():
        return
    for statement in _statements(schema):
        if "CREATE TABLE gap " in statement or "INDEX gap_by_seq" in statement:
            connection.execute(statement)


def _from_6(connection: sqlite3.Connection, schema: str) -> None:
    """Migrate from version 6, which had no checksums. Each row gets one when it is next written."""
    for table, columns in _SEALS.items():
        known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        for column in columns:
            if column not in known:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} INTEGER")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'damaged'").fetchone():
        (statement,) = (candidate for candidate in _statements(schema) if "CREATE TABLE damaged " in candidate)
        connection.execute(statement)


def _from_7(connection: sqlite3.Connection, schema: str) -> None:
    """Migrate from version 7, which had no bundles. New points of runs with many series go to bundles."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'bundle'").fetchone():
        return
    for statement in _statements(schema):
        if "CREATE TABLE bundle" in statement or "INDEX bundle_by_group" in statement:
            connection.execute(statement)


def _from_8(connection: sqlite3.Connection, schema: str) -> None:
    """Migrate from version 8, which had no results and no first steps of metrics, and stored log lines as events."""
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for statement in _statements(schema):
        for name in {"result", "first_step", "log", "log_usage"} - present:
            if f"CREATE TABLE {name} " in statement:
                connection.execute(statement)
        if "INDEX log_by_time" in statement and "log_by_time" not in present:
            connection.execute(statement)


def _from_9(connection: sqlite3.Connection) -> None:
    """Migrate from version 9, which did not store job types. Adding the columns changes no rows."""
    present = {row[1] for row in connection.execute("PRAGMA table_info(run)")}
    for column in ("job_type TEXT", "job_type_seal INTEGER"):
        if column.split()[0] not in present:
            connection.execute(f"ALTER TABLE run ADD COLUMN {column}")


def _first_steps_of_metrics(connection: sqlite3.Connection) -> None:
    """Use the first step of a process for each of its metrics, because older versions did not store first steps of metrics."""
    connection.execute(
        "INSERT OR IGNORE INTO first_step (process, metric, step, seq) SELECT DISTINCT process.id, metric, first_step, 0"
        " FROM process JOIN series ON series.process = process.id WHERE attempt > 1 AND first_step IS NOT NULL"
    )


def _move_lines(connection: sqlite3.Connection) -> None:
    """Move events without a name to the table of log lines. Events whose JSON is damaged stay where they are."""
    last = 0
    while True:
        rows = connection.execute(
            "SELECT event.id, event.run, event.process, process.process, event.time, body, attributes, record FROM event"
            " JOIN process ON process.id = event.process WHERE name = '' AND event.id > ? ORDER BY event.id LIMIT 1000",
            (last,),
        ).fetchall()
        if not rows:
            return
        last = rows[-1][0]
        for number, run, process, process_id, time, body, attributes, record in rows:
            try:
                fields = json.loads(record or "{}")
                scope = fields.pop("scope", {})
                event = Event(
                    "", time, json.loads(body), json.loads(attributes), scope=Scope(**{"name": ""} | scope), **fields
                )
            except (ValueError, TypeError):
                continue
            line = prepare_line(event, process_id)
            if not isinstance(line, str):
                insert_lines(connection, run, process, [(time, line)], LOG_LIMIT)
                connection.execute("DELETE FROM event WHERE id = ?", (number,))


def _first_steps(connection: sqlite3.Connection) -> None:
    rows = connection.execute(
        "SELECT process.id, series.id FROM series JOIN process ON process.id = series.process"
        " WHERE metric = ? AND attempt > 1 AND kind = 'gauge'",
        (STEP_METRIC,),
    ).fetchall()
    for process, series in rows:
        for row in connection.execute(
            f"SELECT {_SEGMENT_COLUMNS} FROM chunk WHERE series = ? ORDER BY seq", (series,)
        ).fetchall():
            began = beginning(decode_segment(Segment(*row)))
            if began is not None:
                connection.execute(
                    "UPDATE process SET first_step = min(ifnull(first_step, :step), :step),"
                    " began = min(ifnull(began, :time), :time) WHERE id = :process",
                    {"step": began[0], "time": began[1], "process": process},
                )


def _states(connection: sqlite3.Connection) -> None:
    from tensormeter.server.store.sqlite.tables.run_state import refresh_run

    for (run,) in connection.execute("SELECT id FROM run").fetchall():
        refresh_run(connection, run)


def _summaries(connection: sqlite3.Connection) -> None:
    rows = connection.execute(
        "SELECT run, metric, series.id FROM series JOIN process ON process.id = series.process",
    ).fetchall()
    for run, metric, series in rows:
        segments = connection.execute(f"SELECT {_SEGMENT_COLUMNS} FROM chunk WHERE series = ? ORDER BY seq", (series,))
        totals = [Totals.of(decode_segment(Segment(*row))) for row in segments]
        if totals:
            add_totals(connection, run, metric, Totals.merge(totals))
    connection.execute(
        "UPDATE run SET newest = ifnull((SELECT max(last_time) FROM summary WHERE summary.run = run.id), 0)"
    )


def _statements(schema: str) -> list[str]:
    """Split a script into statements, because `executescript` would commit."""
    lines = [line.partition("--")[0] for line in schema.splitlines()]
    return [statement for statement in "\n".join(lines).split(";") if statement.strip()]
