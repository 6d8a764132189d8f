"""Reader of a run's log lines."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tensormeter.client.connection import ApiError, Connection
from tensormeter.client.frame import import_pandas
from tensormeter.client.line_pattern import compile_pattern
from tensormeter.errors import TensormeterError, UsageError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SEVERITIES", "LogLine", "LogLines", "severity_number"]

SEVERITIES: Final = {
    "TRACE": 1,
    "DEBUG": 5,
    "INFO": 9,
    "WARNING": 13,
    "WARN": 13,
    "ERROR": 17,
    "CRITICAL": 21,
    "FATAL": 21,
}
"""Lowest severity number of each level."""

_PAGE: Final = 5000
_FIRST: Final = "0-0"
_PLAIN: Final = re.compile(r"[\w ]+", re.ASCII)
"""Regular expressions that match only themselves."""
_MAX_TEXT: Final = 4 << 20
_OVER: Final = ("finished", "failed", "crashed")
_RETRY: Final = 2.0
"""Seconds to wait before a connection is opened again."""


@dataclass(frozen=True)
class LogLine:
    """A line of a run's log.

    Attributes:
        id: ID of the line, unique within its run.
        time: Time of the line, in nanoseconds since the Unix epoch.
        process: ID of the process.
        rank: Rank of the process; None if unknown.
        stream: "stdout" or "stderr"; None if the line was not printed.
        severity: OTLP severity number, from 1 (TRACE) to 24 (FATAL4); 0 if there is none.
        text: The line. Bodies that are not strings are JSON.
        severity_text: Name of the severity, as chosen by the sender; "" if there is none.
        scope: Mapping with `name`, `version` and `attributes` of the instrumentation scope. For Python's logging, the
            name is that of the logger.
        attributes: Attributes of the log record.
        trace_id: Hexadecimal ID of the trace; "" if there is none.
        span_id: Hexadecimal ID of the span; "" if there is none.
    """

    id: str
    time: int
    process: str
    rank: int | None
    stream: str | None
    severity: int
    text: str
    severity_text: str = field(default="", repr=False)
    scope: Mapping[str, Any] = field(default_factory=dict, repr=False)
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    trace_id: str = field(default="", repr=False)
    span_id: str = field(default="", repr=False)


class LogLines:
    """Lines of a run's log, oldest first, which each iteration reads from the server page by page.

    Attributes:
        evicted: Number of the run's oldest lines that the server deleted, because there were too many; known after the
            first page was read.
        damaged: Number of lines that the latest iteration left out because the server's store is damaged.
    """

    def __init__(
        self,
        connection: Connection,
        run: tuple[str, str],
        query: Mapping[str, str | float | None],
        *,
        pattern: str | None = None,
        tail: int | None = None,
    ) -> None:
        """Create a reader. Use `StoredRun.logs` instead.

        Args:
            connection: Connection to the server.
            run: Project and ID of the run.
            query: Parameters that select lines.
            pattern: Regular expression that the lines match.
            tail: Number of lines to read, the newest ones; None for all.

        Raises:
            UsageError: The regular expression is invalid.
        """
        self._matches = None if pattern is None else compile_pattern(pattern)
        if pattern is not None and _PLAIN.fullmatch(pattern) and not query.get("search"):
            query = {**query, "search": pattern}  # the server looks for a plain text, in either case
        self._connection = connection
        self._project, self._run = run
        self._query = query
        self._tail = tail
        self._ranks: dict[str, int | None] = {}
        self.evicted = self.damaged = 0

    def __iter__(self) -> Iterator[LogLine]:
        self.damaged = 0
        if self._tail is not None:
            yield from self._last(self._tail)
            return
        after: str | None = _FIRST
        while after is not None:
            page = self._page(after=after)
            yield from self._lines(page)
            after = page["newer"]

    def follow(self) -> Iterator[LogLine]:
        """Iterate over the lines and over those that arrive later, in order of arrival. Blocks until lines arrive.

        The iteration ends when the run has ended. It waits for the next attempt of a run that was preempted. If the
        connection breaks, it is opened again.
        """
        cursor = str(self._page(limit=1)["cursor"])
        seen: set[str] = set()
        for line in self:
            seen.add(line.id)
            yield line
        is_over = False
        while not is_over:
            try:
                updates = self._connection.updates(runs=self._run, project=self._project)
                for first, update in enumerate(updates):
                    if first == 0 or "state" in update:
                        is_over = self._state() in _OVER
                    elif not update.get("logs"):
                        continue
                    more = True
                    while more:
                        page = self._page(since=cursor)
                        cursor, more = page["cursor"], page.get("more", False)
                        yield from (line for line in self._lines(page) if line.id not in seen)
                    seen.clear()
                    if is_over:
                        return
            except TensormeterError as error:
                if isinstance(error, ApiError) and error.status < 500:
                    raise
            time.sleep(_RETRY)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the lines as a DataFrame with the columns `time` (UTC), `rank`, `stream`, `severity`, `logger` and `text`.

        Raises:
            UsageError: pandas is not installed.
        """
        pandas = import_pandas()
        lines = list(self)
        return pandas.DataFrame(
            {
                "time": pandas.to_datetime([line.time for line in lines], unit="ns", utc=True),
                "rank": pandas.array([line.rank for line in lines], dtype="Int64"),
                "stream": [line.stream for line in lines],
                "severity": [line.severity for line in lines],
                "logger": [line.scope.get("name", "") for line in lines],
                "text": [line.text for line in lines],
            }
        )

    def _page(self, **place: str | float | None) -> dict[str, Any]:
        parameters: dict[str, str | float | None] = {"limit": _PAGE, "max_text": _MAX_TEXT, **self._query, **place}
        page = self._connection.get("runs", self._run, "logs", project=self._project, **parameters)
        self.evicted = page["usage"]["evicted"]
        self.damaged += page.get("damaged", 0)
        return page

    def _last(self, tail: int) -> list[LogLine]:
        """Return the newest lines."""
        lines: list[LogLine] = []
        before: str | None = None
        while len(lines) < tail:
            page = self._page(before=before, limit=_PAGE if self._matches else min(_PAGE, tail - len(lines)))
            lines = self._lines(page) + lines
            before = page["older"]
            if before is None:
                break
        return lines[-tail:] if tail else []

    def _lines(self, page: Mapping[str, Any]) -> list[LogLine]:
        """Return the lines of a page that match the pattern."""
        matches = self._matches
        documents = [document for document in page["lines"] if matches is None or matches(document["text"])]
        if any(document["process"] not in self._ranks for document in documents):
            run = self._connection.get("runs", self._run, project=self._project, fields="")
            self._ranks = {process["id"]: process["rank"] for process in run["processes"]}
        return [_line(document, self._ranks.get(document["process"])) for document in documents]

    def _state(self) -> str:
        return str(self._connection.get("runs", self._run, project=self._project, fields="")["state"])


def severity_number(level: str | int) -> int:
    """Return the lowest severity number of a level.

    Raises:
        UsageError: The level is unknown.
    """
    number = SEVERITIES.get(level.upper()) if isinstance(level, str) else level
    if number is None or not 0 <= number <= 24:
        raise UsageError(f"severity: expected {', '.join(SEVERITIES)} or a number from 0 to 24, got {level!r}")
    return number


def _line(document: Mapping[str, Any], rank: int | None) -> LogLine:
    names = ("severity_text", "scope", "attributes", "trace_id", "span_id")
    return LogLine(
        document["id"],
        int(document["time"]),
        document["process"],
        rank,
        document["stream"],
        document["severity"],
        document["text"],
        **{name: document[name] for name in names if name in document},
    )
