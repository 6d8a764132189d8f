"""Log lines in the SQLite file."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tensormeter.otlp.check import Check
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.log_lines import LogLine, LogPage, LogQuery, LogUsage
from tensormeter.server.store.rules.log_lines import STREAMS, LogLimit, PreparedLine, stored_line
from tensormeter.server.store.rules.log_scan import MAX_PAGE_TEXT, Range, read_page
from tensormeter.server.store.sqlite.integrity.seals import checksum, verify

__all__ = ["SEALED", "changed_logs", "insert_lines", "last_line", "read_lines", "read_usage", "remove_lines"]

SEALED: Final = "run, process, time, digest, severity, stream, body, attributes, record"
"""Columns of a line that the seal covers."""

_SLICE: Final = 64_000
"""Maximum number of lines that are searched between two looks at the clock: 0.1 s."""

_ARRIVED: Final = 200_000
"""Maximum number of lines of all runs that are searched for lines of one run that have arrived."""

_READ: Final = f"log.id, {', '.join(f'log.{name}' for name in SEALED.split(', '))}, log.seal, process.process"
_SIZE: Final = "length(CAST(body AS BLOB)) + length(CAST(attributes AS BLOB)) + length(CAST(record AS BLOB))"


def insert_lines(
    connection: sqlite3.Connection, run: int, process: int, lines: Sequence[tuple[int, PreparedLine]], limit: LogLimit
) -> None:
    """Store lines of a process, except those that are stored already, and evict the run's oldest lines if it has too many.

    Args:
        connection: Connection with a transaction.
        run: Row ID of the run.
        process: Row ID of the process.
        lines: Time and stored form of each line.
        limit: Maximum number and size of the run's lines.
    """
    statement = f"INSERT OR IGNORE INTO log ({SEALED}, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    added = size = last = 0
    for time, line in lines:
        columns = (run, process, time, line.digest, line.severity, line.stream, line.text, line.attributes, line.record)
        cursor = connection.execute(statement, (*columns, checksum(*columns)))
        if cursor.rowcount:
            added += 1
            size += line.size
            last = cursor.lastrowid or last
    if not added:
        return
    stored, stored_size = connection.execute(
        "INSERT INTO log_usage (run, lines, size, evicted, last) VALUES (?, ?, ?, 0, ?) ON CONFLICT DO UPDATE SET"
        " lines = lines + excluded.lines, size = size + excluded.size, last = excluded.last RETURNING lines, size",
        (run, added, size, last),
    ).fetchone()
    excess = limit.excess(stored, stored_size)
    if any(excess):
        _evict(connection, run, *excess)


def remove_lines(connection: sqlite3.Connection, run: int, before: int, most: int) -> int:
    """Delete up to `most` lines of a run that are older than `before`, and return their number."""
    rows = connection.execute(
        f"SELECT id, {_SIZE} FROM log WHERE run = ? AND time < ? ORDER BY time LIMIT ?", (run, before, most)
    ).fetchall()
    connection.executemany("DELETE FROM log WHERE id = ?", [row[:1] for row in rows])
    connection.execute(
        "UPDATE log_usage SET lines = lines - ?, size = size - ? WHERE run = ?",
        (len(rows), sum(row[1] for row in rows), run),
    )
    return len(rows)


def read_usage(connection: sqlite3.Connection, run: int) -> LogUsage:
    """Return how many lines of a run are stored."""
    row = connection.execute("SELECT lines, size, evicted FROM log_usage WHERE run = ?", (run,)).fetchone()
    return LogUsage(*(row or (0, 0, 0)))


def read_lines(connection: sqlite3.Connection, run: int, query: LogQuery, check: Check) -> LogPage:
    """Read a page of a run's lines; see `Store.logs`."""
    usage, last = read_usage(connection, run), last_line(connection)
    conditions, parameters = _conditions(connection, run, query)
    if query.since is not None:
        since = int(query.since) if query.since.isascii() and query.since.isdecimal() and len(query.since) < 19 else -1
        if 0 <= since <= last:
            return _arrived(connection, run, query, (conditions, parameters), since, last, usage)
        return replace(read_lines(connection, run, replace(query, since=None), check), reset=True)

    lines = _Lines(connection, run, query, conditions, parameters)
    return read_page(lines, query, str(last), usage, check)


def last_line(connection: sqlite3.Connection) -> int:
    """Return the highest ID that a line has had."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'log'").fetchone()
    return 0 if row is None else int(row[0])


def changed_logs(connection: sqlite3.Connection, after: int) -> set[int]:
    """Return the row IDs of the runs with lines that arrived after the line with this ID."""
    return {row[0] for row in connection.execute("SELECT run FROM log_usage WHERE last > ?", (after,))}


@dataclass(frozen=True)
class _Lines:
    """The lines of a run that match a query; see `LineSource`."""

    connection: sqlite3.Connection
    run: int
    query: LogQuery
    conditions: str
    parameters: Sequence[Any]
    sliced: bool = False
    largest_slice: int = _SLICE

    def bound(self, part: Range, n: int) -> int | None:
        """See `LineSource`."""
        row = self.connection.execute(
            "SELECT time FROM log WHERE run = ? AND time >= ? AND time <= ?"
            f" ORDER BY time {'DESC' if part.descending else 'ASC'} LIMIT 1 OFFSET ?",
            (self.run, part.after[0], part.before[0], n),
        ).fetchone()
        return None if row is None else int(row[0])

    def select(self, part: Range) -> Iterator[LogLine]:
        """See `LineSource`."""
        direction = "DESC" if part.descending else "ASC"
        rows = self.connection.execute(
            f"SELECT {_READ} FROM log LEFT JOIN process ON process.id = log.process WHERE log.run = ?"
            " AND time >= ? AND time <= ? AND (time, log.id) > (?, ?) AND (time, log.id) < (?, ?)"
            f"{self.conditions} ORDER BY time {direction}, log.id {direction} LIMIT ?",
            (
                *(self.run, part.after[0], part.before[0], *part.after, *part.before),
                *(*self.parameters, self.query.limit + 1),
            ),
        )
        return (_sealed_line(row, self.query.max_text) for row in rows)


def _arrived(
    connection: sqlite3.Connection,
    run: int,
    query: LogQuery,
    filters: tuple[str, list[Any]],
    since: int,
    last: int,
    usage: LogUsage,
) -> LogPage:
    """Return lines that arrived after the line with the ID `since`. The lines of other runs in between are skipped."""
    upto = min(last, since + _ARRIVED)
    conditions, parameters = filters
    lines: list[LogLine] = []
    size = 0
    rows = connection.execute(
        f"SELECT {_READ} FROM log LEFT JOIN process ON process.id = log.process WHERE log.id > ? AND log.id <= ?"
        f" AND +log.run = ? AND time >= ? AND time < ?{conditions} ORDER BY log.id LIMIT ?",
        (
            since,
            upto,
            run,
            query.start or 0,
            (1 << 63) - 1 if query.stop is None else query.stop,
            *parameters,
            query.limit,
        ),
    )
    for row in rows:
        lines.append(_sealed_line(row, query.max_text))
        size += lines[-1].size
        if size > MAX_PAGE_TEXT or len(lines) == query.limit:
            upto = lines[-1].id
            break
    return LogPage(lines, None, None, str(upto), usage, more=upto < last)


def _conditions(connection: sqlite3.Connection, run: int, query: LogQuery) -> tuple[str, list[Any]]:
    conditions = ""
    parameters: list[Any] = []
    if query.processes is not None:
        wanted = set(query.processes)
        rows = connection.execute("SELECT id, process FROM process WHERE run = ?", (run,))
        conditions += " AND log.process IN (SELECT value FROM json_each(?))"
        parameters.append(json.dumps([row[0] for row in rows if row[1] in wanted]))
    if query.stream is not None:
        conditions += " AND stream = ?"
        parameters.append(STREAMS.index(query.stream))
    if query.severity:
        conditions += " AND severity >= ?"
        parameters.append(query.severity)
    if query.search:
        conditions += " AND instr(lower(body), lower(?))"
        parameters.append(query.search)
    return conditions, parameters


def _evict(connection: sqlite3.Connection, run: int, lines: int, size: int) -> None:
    """Delete the oldest lines of a run: at least this number, and at least this many bytes."""
    count = freed = 0
    bound = 0
    for time, length in connection.execute(f"SELECT time, {_SIZE} FROM log WHERE run = ? ORDER BY time", (run,)):
        if count >= lines and freed >= size and time > bound:  # lines of the same time are deleted together
            break
        count += 1
        freed += length
        bound = time
    connection.execute("DELETE FROM log WHERE run = ? AND time <= ?", (run, bound))
    connection.execute(
        "UPDATE log_usage SET lines = lines - ?, size = size - ?, evicted = evicted + ? WHERE run = ?",
        (count, freed, count, run),
    )


def _sealed_line(row: Sequence[Any], max_text: int) -> LogLine:
    """Create a line from the columns `_READ`. Raises DamagedError."""
    number, *columns, seal, process_name = row
    run, process, time, _, severity, stream, text, attributes, record = columns
    verify(f"log line {number} of run {run}", seal, *columns)
    if process_name is None:
        raise DamagedError(f"log line {number} of run {run}: its process {process} is missing")
    return stored_line((number, time, process_name, severity, stream, text[:max_text], len(text), attributes, record))
