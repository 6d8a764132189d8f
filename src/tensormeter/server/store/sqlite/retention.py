"""Removal, in small parts, of data that belongs to deleted runs or exceeds the retention limits."""

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.rules.log_lines import LOG_LIMIT, LogLimit
from tensormeter.server.store.sqlite.integrity.seals import RUN_JOB, RUN_TALLY, RUN_TEXTS
from tensormeter.server.store.sqlite.points.bundle_removal import purge_bundles, remove_old_bundles
from tensormeter.server.store.sqlite.points.segment_rows import Span, spans, update_directory
from tensormeter.server.store.sqlite.tables.log_lines import remove_lines

__all__ = [
    "Retention",
    "deleted_runs",
    "expired_runs",
    "purge_some",
    "remove_old_lines",
    "remove_old_points",
    "used_bytes",
]

Report = Callable[[DamagedError], None]
"""Function called with the error for each damaged part."""

_SEGMENTS: Final = 64
"""Maximum number of segments that one transaction removes. Ingestion waits for the transaction."""

KEEP: Final = "keep"
"""Tag that protects a run from retention."""


@dataclass(frozen=True)
class Retention:
    """Limits on the data that a store keeps.

    Attributes:
        max_age: Age in seconds at which points, log lines, and runs without new data, are removed; None to keep them.
        max_bytes: Maximum size of the data in the file, in bytes; None for no limit. If the data exceeds the limit,
            ended runs are removed: archived runs before others, and then runs whose last data arrived longest ago.
        logs: Maximum number and size of the log lines of a run.
    """

    max_age: float | None = None
    max_bytes: int | None = None
    logs: LogLimit = LOG_LIMIT

    def before(self, now: int) -> int | None:
        """Return the time before which data is too old, in nanoseconds since the Unix epoch; None for no age limit."""
        return None if self.max_age is None else now - int(self.max_age * 1e9)


def deleted_runs(connection: sqlite3.Connection, report: Report) -> list[int]:
    """Return deleted runs that still have data.

    Runs with damaged rows are excluded, because their deletion flag may be wrong.
    """
    return _sound(connection, [row[0] for row in connection.execute("SELECT id FROM run WHERE deleted")], report)


def purge_some(connection: sqlite3.Connection, run: int) -> bool:
    """Remove some of a deleted run's data inside the caller's transaction. Return whether there was any data left.

    The memtable must not contain points of the run.
    """
    series = "SELECT series.id FROM series JOIN process ON process.id = series.process WHERE process.run = ?"
    processes = "SELECT id FROM process WHERE run = ?"
    if purge_bundles(connection, run):
        return True
    for statement in (
        f"DELETE FROM chunk WHERE id IN (SELECT id FROM chunk WHERE series IN ({series}) LIMIT {_SEGMENTS})",
        f"DELETE FROM gap WHERE id IN (SELECT id FROM gap WHERE series IN ({series}) LIMIT {100 * _SEGMENTS})",
        f"DELETE FROM event WHERE id IN (SELECT id FROM event WHERE run = ? LIMIT {100 * _SEGMENTS})",
        f"DELETE FROM log WHERE id IN (SELECT id FROM log WHERE run = ? LIMIT {100 * _SEGMENTS})",
        "DELETE FROM log_usage WHERE run = ?",
        f"DELETE FROM media WHERE rowid IN (SELECT rowid FROM media WHERE run = ? LIMIT {_SEGMENTS})",
        "DELETE FROM summary WHERE run = ?",
        f"DELETE FROM series WHERE process IN ({processes})",
        f"DELETE FROM first_step WHERE process IN ({processes})",
        "DELETE FROM result WHERE run = ?",
        "DELETE FROM process WHERE run = ?",
        "DELETE FROM run WHERE id = ?",
    ):
        if connection.execute(statement, (run,)).rowcount:
            return True
    return False


def remove_old_points(connection: sqlite3.Connection, before: int, report: Report) -> bool:
    """Remove some segments and bundles that contain only old points, inside the caller's transaction. Return whether there were any.

    Skips runs with the tag "keep", and segments whose times may be damaged. Summaries of metrics stay unchanged.
    """
    candidates = connection.execute(
        "SELECT chunk.id, chunk.series, chunk.n, process.run, chunk.seq, chunk.t_min, chunk.t_max"
        " FROM chunk JOIN series ON series.id = chunk.series"
        " JOIN process ON process.id = series.process JOIN run ON run.id = process.run"
        f" WHERE chunk.t_max < ? AND {_unprotected()} LIMIT ?",
        (before, _SEGMENTS),
    ).fetchall()
    sound = {*_sound(connection, {row[3] for row in candidates}, report)}
    written_spans: dict[int, set[Span]] = {}
    for series in {row[1] for row in candidates}:
        try:
            written_spans[series] = {*spans(connection, series)}
        except DamagedError as error:
            report(error)
    rows = [
        row for row in candidates if row[3] in sound and Span(row[4], row[2], *row[5:]) in written_spans.get(row[1], ())
    ]
    connection.executemany("DELETE FROM chunk WHERE id = ?", [(row[0],) for row in rows])
    olds = [(series, before) for series in {row[1] for row in rows}]
    connection.executemany("DELETE FROM gap WHERE series = ? AND time < ?", olds)
    connection.executemany("UPDATE series SET points = points - ? WHERE id = ?", [(row[2], row[1]) for row in rows])
    connection.executemany("UPDATE run SET points = points - ? WHERE id = ?", [(row[2], row[3]) for row in rows])
    for series in {row[1] for row in rows}:
        update_directory(connection, series)
    return bool(rows) or remove_old_bundles(
        connection, before, lambda runs: _removable(connection, runs, report), report
    )


def remove_old_lines(connection: sqlite3.Connection, before: int, report: Report) -> bool:
    """Remove some log lines that are too old, inside the caller's transaction. Return whether there were any.

    Skips runs with the tag "keep".
    """
    old = "SELECT 1 FROM log WHERE log.run = log_usage.run AND time < ?"
    runs = [row[0] for row in connection.execute(f"SELECT run FROM log_usage WHERE EXISTS ({old})", (before,))]
    for run in sorted(_removable(connection, runs, report)):
        if remove_lines(connection, run, before, 100 * _SEGMENTS):
            return True
    return False


def expired_runs(
    connection: sqlite3.Connection, before: int | None, max_bytes: int | None, report: Report
) -> list[int]:
    """Return the runs that retention must delete now: those without points or events since `before`.

    If there are none and the store is too large, return one ended run, namely the one whose last data arrived longest
    ago. Archived runs come before others.
    """
    condition = f"NOT deleted AND {_unprotected()}"
    runs: list[int] = []
    if before is not None:
        rows = connection.execute(f"SELECT id FROM run WHERE updated < ? AND {condition} LIMIT 100", (before,))
        runs = [row[0] for row in rows]
    if not runs and max_bytes is not None and used_bytes(connection) > max_bytes:
        rows = connection.execute(
            f"SELECT id FROM run WHERE state != 'running' AND {condition} ORDER BY archived DESC, updated LIMIT 1"
        )
        runs = [row[0] for row in rows]
    return _sound(connection, runs, report)


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the number of bytes in the file that are in use."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _removable(connection: sqlite3.Connection, runs: Iterable[int], report: Report) -> set[int]:
    """Return those of some runs that are undamaged and not protected from retention."""
    unprotected = [
        run
        for run in runs
        if connection.execute(f"SELECT 1 FROM run WHERE id = ? AND {_unprotected()}", (run,)).fetchone()
    ]
    return {*_sound(connection, unprotected, report)}


def _sound(connection: sqlite3.Connection, runs: Iterable[int], report: Report) -> list[int]:
    """Return the runs whose rows are undamaged. Only these runs may be deleted."""
    sound_runs = []
    for run in runs:
        for seal in (RUN_TALLY, RUN_TEXTS, RUN_JOB):
            row = connection.execute(f"SELECT {seal.selection} FROM run WHERE id = ?", (run,)).fetchone()
            try:
                seal.verify(row, f"the row of run {run}, which is therefore not deleted")
            except DamagedError as error:
                report(error)
                break
        else:
            sound_runs.append(run)
    return sound_runs


def _unprotected() -> str:
    return f"NOT EXISTS (SELECT 1 FROM json_each(ifnull(run.tags, '[]')) WHERE json_each.value = '{KEEP}')"
