"""Log lines in the SQLite file."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tensormeter.otlp.check import Check
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.log_lines import LAST_ID, DamagedLine, LogLine, LogPage, LogQuery, LogUsage
from tensormeter.server.store.rules.log_lines import STREAMS, LogLimit, PreparedLine, stored_line
from tensormeter.server.store.rules.log_scan import Range, read_page, take_page
from tensormeter.server.store.sqlite.integrity.damage import name_damage
from tensormeter.server.store.sqlite.integrity.seals import checksum, is_sound

__all__ = ["SEALED", "USAGE", "changed_logs", "insert_lines", "last_line", "read_lines", "read_usage", "remove_lines"]

SEALED: Final = "run, process, time, digest, severity, stream, body, attributes, record"
"""Columns of a line that the seal covers."""

USAGE: Final = "run, lines, size, evicted, last"
"""Columns of a usage that the seal covers."""

_SLICE: Final = 64_000
"""Maximum number of lines that are searched between two looks at the clock: 0.1 s."""

_ARRIVED: Final = 200_000
"""Maximum number of lines of all runs that are searched for lines of one run that have arrived."""

_MESSAGES: Final = 100
"""Maximum number of messages about damage in a page."""

_READ: Final = (
    "log.id, log.run, log.process, log.time, log.digest, log.severity, log.stream, CAST(log.body AS BLOB),"
    " CAST(log.attributes AS BLOB), CAST(log.record AS BLOB), log.seal, process.process"
)
"""ID, columns of `SEALED`, seal, and name of the process. Texts are bytes, because damaged text may not be UTF-8."""

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


def read_usage(connection: sqlite3.Connection, run: int, damaged: list[str]) -> LogUsage:
    """Return how many lines of a run are stored.

    If the stored numbers are damaged, count the lines, and add a message to `damaged`; the number of evicted lines is then 0.
    """
    row = connection.execute(f"SELECT {USAGE}, seal FROM log_usage WHERE run = ?", (run,)).fetchone()
    if row is None:
        return LogUsage(0, 0, 0)
    if is_sound(row[-1], *row[:-1]):
        return LogUsage(*row[1:4])
    _note_damage(connection, damaged, f"the number of log lines of run {run}: the checksum does not match")
    lines, size = connection.execute(
        f"SELECT count(*), ifnull(sum({_SIZE}), 0) FROM log WHERE run = ?", (run,)
    ).fetchone()
    return LogUsage(lines, size, 0)


def read_lines(connection: sqlite3.Connection, run: int, query: LogQuery, damaged: list[str], check: Check) -> LogPage:
    """Read a page of a run's lines; see `Store.logs`. Messages about damage are added to `damaged`."""
    usage, last = read_usage(connection, run, damaged), last_line(connection)
    lines = _Lines(connection, run, query, *_conditions(connection, run, query), damaged)
    if query.since is None:
        return read_page(lines, query, str(last), usage, check)
    since = int(query.since) if query.since.isascii() and query.since.isdecimal() and len(query.since) < 19 else -1
    if not 0 <= since <= last:
        return replace(read_lines(connection, run, replace(query, since=None), damaged, check), reset=True)
    upto = min(last, since + _ARRIVED)
    rows, is_full = take_page(lines.arrived(since, upto), query.limit)
    if is_full:
        upto = rows[-1].position[1]
    return LogPage(rows, None, None, str(upto), usage, more=upto < last)


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
    damaged: list[str]
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

    def select(self, part: Range) -> Iterator[LogLine | DamagedLine]:
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
        before = part.before if part.descending else part.after
        for row in rows:
            line = _sealed_line(self.connection, row, self.query.max_text, self.damaged)
            if isinstance(line, DamagedLine):
                bounds = (part.after, before) if part.descending else (before, part.before)
                if not bounds[0] < line.position < bounds[1]:  # its time is damaged
                    line = DamagedLine(before)
            before = line.position
            yield line

    def arrived(self, since: int, upto: int) -> Iterator[LogLine | DamagedLine]:
        """Yield the matching lines with IDs from `since` + 1 to `upto`, and at most the query's limit."""
        stop = LAST_ID if self.query.stop is None else self.query.stop
        rows = self.connection.execute(
            f"SELECT {_READ} FROM log LEFT JOIN process ON process.id = log.process WHERE log.id > ? AND log.id <= ?"
            f" AND +log.run = ? AND time >= ? AND time < ?{self.conditions} ORDER BY log.id LIMIT ?",
            (since, upto, self.run, self.query.start or 0, stop, *self.parameters, self.query.limit),
        )
        return (_sealed_line(self.connection, row, self.query.max_text, self.damaged) for row in rows)


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


def _sealed_line(
    connection: sqlite3.Connection, row: Sequence[Any], max_text: int, damaged: list[str]
) -> LogLine | DamagedLine:
    """Create a line from the columns `_READ`. If the line is damaged, add a message to `damaged`."""
    number, *columns, seal, process_name = row
    run, process, time, _, severity, stream, *texts = columns
    if is_sound(seal, *columns) and process_name is not None:
        text, attributes, record = (part.decode() for part in texts)
        size = len(text)
        return stored_line((number, time, process_name, severity, stream, text[:max_text], size, attributes, record))
    reason = f"its process {process} is missing" if process_name is None else "the checksum does not match"
    _note_damage(connection, damaged, f"log line {number} of run {run}: {reason}")
    return DamagedLine((time if isinstance(time, int) else -1, number))


def _note_damage(connection: sqlite3.Connection, damaged: list[str], text: str) -> None:
    if len(damaged) < _MESSAGES:
        damaged.append(str(name_damage(connection, DamagedError(text))))
