"""Log lines in ClickHouse: rows, reads and eviction."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tensormeter.conventions.limits import EVENT_BYTES
from tensormeter.otlp.check import Check
from tensormeter.server.store.clickhouse.arrival_log import Log
from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.keys import invert
from tensormeter.server.store.clickhouse.rowbinary import encode_rows
from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.server.store.models.log_lines import DamagedLine, LogLine, LogPage, LogQuery, LogUsage
from tensormeter.server.store.rules.log_lines import STREAMS, LogLimit, PreparedLine, stored_line
from tensormeter.server.store.rules.log_scan import MAX_PAGE_TEXT, Range, read_page, take_page

__all__ = ["LOG_COLUMNS", "LogReader", "LogTrimmer", "line_row"]

LOG_COLUMNS: Final = {
    "run": "Q",
    "time": "q",
    "digest": "q",
    "id": "q",
    "process": "s",
    "severity": "B",
    "stream": "B",
    "body": "s",
    "attributes": "s",
    "record": "s",
    "size": "I",
    "commit": "Q",
    "precedence": "Q",
    "received": "I",
}

_SLICE: Final = 512_000
"""Maximum number of lines that are searched between two looks at the clock."""

_KNOWN: Final = 10_000
"""Maximum number of runs whose lines are counted in memory."""

_CUT: Final = "logs"
"""Field of `annotation` with the time up to which lines of a run were evicted, and their number."""

_ANNOTATION_COLUMNS: Final = {"run": "Q", "field": "s", "value": "s", "number": "Q"}

_READ: Final = (
    "id, time, process, severity, stream, substringUTF8(body, 1, {most}), lengthUTF8(body), attributes, record"
)
_PARTIAL: Final = "~"
"""Separator of the parts of a cursor inside a page: cursor before and after the page, and ID of the last line."""


def line_row(run: int, process: str, time: int, line: PreparedLine, *, number: int, commit: int) -> list[object]:
    """Create a row for the table `log`.

    Args:
        run: Key of the run.
        process: ID of the process.
        time: Time of the line, in nanoseconds since the Unix epoch.
        line: Stored form of the line.
        number: Arrival number of the line, which is its ID.
        commit: Arrival number of the commit.
    """
    return [
        *(run, time, line.digest, number, process, line.severity, line.stream, line.text, line.attributes, line.record),
        *(line.size, commit, invert(number), number // 10**6),
    ]


class LogReader:
    """Reader of log lines. Thread-safe."""

    def __init__(self, connection: Connection, log: Log) -> None:
        self._connection = connection
        self._log = log

    def read(self, run: int, query: LogQuery, check: Check) -> LogPage:
        """Read a page of a run's lines; see `Store.logs`."""
        cut, evicted = read_cut(self._connection, run)
        usage = self._usage(run, cut, evicted)
        filters, texts = _conditions(run, query, cut)
        if query.since is not None:
            page = self._arrived(run, query, filters, texts, usage)
            if page is not None:
                return page
        cursor = self._log.cursor()
        plain = replace(query, since=None)
        page = read_page(_Lines(self._connection, run, cut, plain, filters, texts), plain, cursor, usage, check)
        return page if query.since is None else replace(page, reset=True)

    def _arrived(
        self, run: int, query: LogQuery, filters: str, texts: Mapping[str, Any], usage: LogUsage
    ) -> LogPage | None:
        """Return lines that arrived after the cursor; None if the cursor is unknown."""
        since, upto, last = (query.since or "", "", "0")
        if _PARTIAL in since:
            parts = since.split(_PARTIAL)
            if len(parts) != 3 or not (parts[2].isascii() and parts[2].isdecimal() and len(parts[2]) < 19):
                return None
            since, upto, last = parts
        upto = upto or self._log.cursor()
        arrived = self._log.since(since, run, upto=upto)
        if arrived is None:
            return None
        commits = [commit.number for commit in arrived if commit.logs]
        rows: Sequence[LogLine | DamagedLine] = ()
        more = False
        if commits:
            where = f"{filters} AND commit IN ({numbers(commits)}) AND id > {int(last)}"
            # Without FINAL, which would read all lines of the run. Two copies of a line are in one page, if any.
            source = f"log WHERE {where} ORDER BY id LIMIT 1 BY time, digest"
            rows, more = take_page(_select(self._connection, source, query, texts, query.limit), query.limit)
        cursor = _PARTIAL.join((since, upto, str(rows[-1].position[1]))) if more else upto
        return LogPage(rows, None, None, cursor, usage, more=more)

    def _usage(self, run: int, cut: int, evicted: int) -> LogUsage:
        lines, size = self._connection.rows(f"SELECT count(), sum(size) FROM log WHERE run = {run} AND time > {cut}")[0]
        return LogUsage(lines, size, evicted)


@dataclass(frozen=True)
class _Lines:
    """The lines of a run that match a query; see `LineSource`.

    Every query is sliced, because FINAL would otherwise read all lines of the run.
    """

    connection: Connection
    run: int
    cut: int
    query: LogQuery
    filters: str
    texts: Mapping[str, Any]
    sliced: bool = True
    largest_slice: int = _SLICE

    def bound(self, part: Range, n: int) -> int | None:
        """See `LineSource`."""
        rows = self.connection.rows(
            f"SELECT time FROM log WHERE run = {self.run} AND time > {self.cut} AND time >= {part.after[0]}"
            f" AND time <= {part.before[0]} ORDER BY time {_direction(part)} LIMIT 1 OFFSET {n}"
        )
        return int(rows[0][0]) if rows else None

    def select(self, part: Range) -> Iterator[LogLine]:
        """See `LineSource`."""
        order = f"ORDER BY time {_direction(part)}, id {_direction(part)}"
        where = (
            f"{self.filters} AND time >= {part.after[0]} AND time <= {part.before[0]}"
            f" AND (time, id) > ({part.after[0]}, {part.after[1]}) AND (time, id) < ({part.before[0]}, {part.before[1]})"
        )
        source = f"log FINAL WHERE {where} {order}"
        return _select(self.connection, source, self.query, self.texts, self.query.limit + 1)


def _select(
    connection: Connection, source: str, query: LogQuery, texts: Mapping[str, Any], limit: int
) -> Iterator[LogLine]:
    """Yield lines. If they could be large, only as many as fit into a page, and one more.

    Args:
        connection: Connection to ClickHouse.
        source: Statement after FROM.
        query: Query with the maximum size of a text.
        texts: Parameters of the statement.
        limit: Maximum number of lines.
    """
    if limit * EVENT_BYTES > MAX_PAGE_TEXT:
        total, most, limit = 0, limit, 0
        for (size,) in connection.rows(f"SELECT size FROM {source} LIMIT {most}", **texts):
            limit += 1
            if total > MAX_PAGE_TEXT:
                break
            total += size
    if limit:
        columns = _READ.format(most=int(query.max_text))
        for row in connection.rows(f"SELECT {columns} FROM {source} LIMIT {limit}", **texts):
            yield stored_line(row)


class LogTrimmer:
    """Evicts the oldest lines of runs that have too many. Use it inside commits only."""

    def __init__(self, connection: Connection, limit: LogLimit, local: str) -> None:
        """Create a trimmer.

        Args:
            connection: Connection to ClickHouse.
            limit: Maximum number and size of a run's lines.
            local: Name of the table to delete from, with the cluster.
        """
        self._connection = connection
        self._limit = limit
        self._local = local
        self._known: dict[int, tuple[int, int]] = {}

    def trim(self, added: Mapping[int, tuple[int, int]], number: int) -> None:
        """Evict lines of runs to which lines were added.

        Args:
            added: Number and size of the added lines by run.
            number: Arrival number of the commit.
        """
        for run, (lines, size) in added.items():
            known = self._known.get(run)
            known = self._count(run) if known is None else (known[0] + lines, known[1] + size)
            if any(self._limit.excess(*known)):  # other servers may have evicted lines already
                known = self._count(run)
                if any(self._limit.excess(*known)):
                    self._evict(run, *self._limit.excess(*known), number)
                    known = self._count(run)
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[run] = known

    def _count(self, run: int) -> tuple[int, int]:
        cut, _ = read_cut(self._connection, run)
        rows = self._connection.rows(f"SELECT count(), sum(size) FROM log WHERE run = {run} AND time > {cut}")
        return rows[0][0], rows[0][1]

    def _evict(self, run: int, lines: int, size: int, number: int) -> None:
        """Hide the oldest lines: at least this number, and at least this many bytes. ClickHouse deletes them later."""
        cut, evicted = read_cut(self._connection, run)
        rows = self._connection.rows(
            "SELECT min(time) FROM (SELECT time, row_number() OVER w AS n, sum(size) OVER w AS total FROM log"
            f" WHERE run = {run} AND time > {cut} WINDOW w AS (ORDER BY time ROWS UNBOUNDED PRECEDING))"
            f" WHERE n >= {lines} AND total >= {size}"
        )
        bound = int(rows[0][0])
        count = self._connection.rows(
            f"SELECT count() FROM log FINAL WHERE run = {run} AND time > {cut} AND time <= {bound}"
        )[0][0]
        value = json.dumps({"time": bound, "evicted": evicted + count})
        row = (run, _CUT, value, number)
        self._connection.insert("annotation", _ANNOTATION_COLUMNS, encode_rows(_ANNOTATION_COLUMNS, [row]))
        try:
            self._connection.execute(
                f"ALTER TABLE {self._local} DELETE WHERE run = {run} AND time <= {bound} SETTINGS mutations_sync = 0"
            )
        except StoreUnavailableError:
            return  # the lines are hidden, and the next eviction deletes them


def read_cut(connection: Connection, run: int) -> tuple[int, int]:
    """Return the time up to which lines of a run were evicted, or -1; and their number."""
    rows = connection.rows(f"SELECT value FROM annotation FINAL WHERE run = {run} AND field = '{_CUT}'")
    if not rows:
        return -1, 0
    cut: Mapping[str, int] = json.loads(rows[0][0])
    return cut["time"], cut["evicted"]


def _conditions(run: int, query: LogQuery, cut: int) -> tuple[str, dict[str, Any]]:
    conditions = [f"run = {run} AND time > {cut}"]
    texts: dict[str, Any] = {}
    if query.start is not None:
        conditions.append(f"time >= {int(query.start)}")
    if query.stop is not None:
        conditions.append(f"time < {int(query.stop)}")
    if query.processes is not None:
        conditions.append("process IN {processes:Array(String)}")
        texts["processes"] = _sorted(query.processes)
    if query.stream is not None:
        conditions.append(f"stream = {STREAMS.index(query.stream)}")
    if query.severity:
        conditions.append(f"severity >= {int(query.severity)}")
    if query.search:
        conditions.append("positionCaseInsensitive(body, {search:String}) > 0")
        texts["search"] = query.search
    return " AND ".join(conditions), texts


def _sorted(processes: Collection[str]) -> Sequence[str]:
    return sorted(processes) or [""]


def _direction(part: Range) -> str:
    return "DESC" if part.descending else "ASC"
