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
from tensormeter.server.store.sqlite.integrity.seals import checksum, is_sound, verify

__all__ = ["SEALED", "USAGE", "changed_logs", "insert_lines", "last_line", "read_lines", "read_usage", "remove_lines"]

SEALED: Final = "run, process, time, digest, severity, stream, body, attributes, record"
"""Columns of a line that the seal covers."""

USAGE: Final = "run, lines, size, evicted, last"
"""Columns of a usage that the seal covers."""

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
    usage = _change_usage(connection, run, lines=added, size=size, last=last)
    excess = limit.excess(usage.lines, usage.size)
    if any(excess):
        _evict(connection, run, *excess)


def remove_lines(connection: sqlite3.Connection, run: int, before: int, most: int) -> int:
    """Delete up to `most` lines of a run that are older than `before`, and return their number."""
    rows = connection.execute(
        f"SELECT id, {_SIZE} FROM log WHERE run = ? AND time < ? ORDER BY time LIMIT ?", (run, before, most)
    ).fetchall()
    connection.executemany("DELETE FROM log WHERE id = ?", [row[:1] for row in rows])
    _change_usage(connection, run, lines=-len(rows), size=-sum(row[1] for row in rows))
    return len(rows)


def read_usage(connection: sqlite3.Connection, run: int) -> LogUsage:
    """Return how many lines of a run are stored. Raises DamagedError."""
    row = connection.execute(f"SELECT {USAGE}, seal FROM log_usage WHERE run = ?", (run,)).fetchone()
    if row is None:
        return LogUsage(0, 0, 0)
    verify(f"the number of log lines of run {run}", row[-1], *row[:-1])
    return LogUsage(*row[1:4])


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
    _change_usage(connection, run, lines=-count, size=-freed, evicted=count)


def _change_usage(
    connection: sqlite3.Connection, run: int, *, lines: int, size: int, evicted: int = 0, last: int = 0
) -> LogUsage:
    """Add numbers to a run's usage, set its last line, and return the usage. A damaged row stays recognizable."""
    row = connection.execute(f"SELECT {USAGE}, seal FROM log_usage WHERE run = ?", (run,)).fetchone()
    is_known_sound = row is None or is_sound(row[-1], *row[:-1])
    _, lines_before, size_before, evicted_before, last_before, _ = row or (run, 0, 0, 0, 0, None)
    usage = LogUsage(lines_before + lines, size_before + size, evicted_before + evicted)
    columns = (run, usage.lines, usage.size, usage.evicted, max(last_before, last))
    seal = checksum(*columns)
    connection.execute(
        f"INSERT OR REPLACE INTO log_usage ({USAGE}, seal) VALUES (?, ?, ?, ?, ?, ?)",
        (*columns, seal if is_known_sound else seal ^ 1),
    )
    return usage


def _sealed_line(row: Sequence[Any], max_text: int) -> LogLine:
    """Create a line from the columns `_READ`. Raises DamagedError."""
    number, *columns, seal, process_name = row
    run, process, time, _, severity, stream, text, attributes, record = columns
    verify(f"log line {number} of run {run}", seal, *columns)
    if process_name is None:
        raise DamagedError(f"log line {number} of run {run}: its process {process} is missing")
    return stored_line((number, time, process_name, severity, stream, text[:max_text], len(text), attributes, record))
