"""Log lines of a run (log records without an event name), queries for them, and pages of results."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["FIRST_ID", "LAST_ID", "DamagedLine", "LogLine", "LogPage", "LogQuery", "LogUsage", "Position", "Stream"]

Stream = Literal["stdout", "stderr"]

Position = tuple[int, int]
"""Time and ID of a line, by which lines are ordered. IDs follow the order of arrival."""

FIRST_ID: Final = 0
LAST_ID: Final = (1 << 63) - 1
"""Lower and upper bound of the IDs of lines. Positions with these IDs are before and after all lines of a time."""


@dataclass(frozen=True)
class LogQuery:
    """Conditions on the log lines of a run, and limits on the result.

    Attributes:
        before: Read only lines before this position.
        after: Read only lines after this position, and the oldest ones first. If it is None, the newest lines are read.
        since: Read the lines that arrived after this cursor, in order of arrival. `before` and `after` are then ignored.
        limit: Maximum number of lines.
        max_text: Maximum number of characters of a line's text; longer texts are truncated.
        start: Start of the time range, inclusive, in nanoseconds since the Unix epoch; None for no bound.
        stop: End of the time range, exclusive, in nanoseconds since the Unix epoch; None for no bound.
        processes: IDs of the processes to read; None for all.
        stream: Console stream of the lines; None for all lines.
        severity: Lowest severity number; 0 for all lines.
        search: Text that the lines contain; "" for all lines. The case of ASCII letters is ignored.
        seconds: Time after which a read that looks for matching lines stops.
    """

    before: Position | None = None
    after: Position | None = None
    since: str | None = None
    limit: int = 1000
    max_text: int = 8192
    start: int | None = None
    stop: int | None = None
    processes: Collection[str] | None = None
    stream: Stream | None = None
    severity: int = 0
    search: str = ""
    seconds: float = 2.0

    @property
    def selective(self) -> bool:
        """Whether the query leaves out lines of its time range."""
        return self.processes is not None or self.stream is not None or self.severity > 0 or self.search != ""


@dataclass(frozen=True)
class LogLine:
    """A log line.

    Attributes:
        process: ID of the process.
        severity: Severity number, from 1 (TRACE) to 24 (FATAL4); 0 if there is none.
        stream: Console stream; None if the line was not printed.
        text: The line, or its body as JSON if the body is not a string; truncated to `LogQuery.max_text`.
        size: Number of characters in the complete text.
        stored_size: Number of characters in the complete text, the attributes and the record, as they are stored.
        attributes: Attributes of the record, without the stream.
        record: Remaining fields, if present: `severity_text`, `trace_id`, `span_id` (both hexadecimal), `flags`,
            `observed_time`, `scope` (`name`, `version`, `attributes`), and `json` if the text is a body as JSON.
    """

    id: int
    time: int
    process: str
    severity: int
    stream: Stream | None
    text: str
    size: int
    stored_size: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def position(self) -> Position:
        """Position of the line."""
        return self.time, self.id


@dataclass(frozen=True)
class DamagedLine:
    """A stored line that cannot be read.

    Attributes:
        position: Position of the line, or that of its neighbor if its own is damaged.
    """

    position: Position
    stored_size: int = 0


@dataclass(frozen=True)
class LogUsage:
    """The log lines that a store keeps for a run.

    Attributes:
        lines: Number of lines.
        size: Bytes of their texts, attributes and other fields.
        evicted: Number of lines that were deleted because the run had too many.
    """

    lines: int
    size: int
    evicted: int


@dataclass(frozen=True)
class LogPage:
    """A page of log lines.

    Attributes:
        rows: Lines from the oldest to the newest; in order of arrival if the query has `since`.
        older: Position to use as `before` for older lines; None if there are none.
        newer: Position to use as `after` for newer lines; None if there were none at the time of the read.
        cursor: Cursor to use as `since` for lines that arrive later.
        stopped: Whether the time limit ended the read. `older` or `newer` is then the place to go on.
        more: Whether more lines had arrived after `cursor` at the time of the read.
        reset: Whether the cursor `since` was unknown. The page then has the newest lines.
    """

    rows: Sequence[LogLine | DamagedLine]
    older: Position | None
    newer: Position | None
    cursor: str
    usage: LogUsage
    stopped: bool = False
    more: bool = False
    reset: bool = False

    @property
    def lines(self) -> list[LogLine]:
        """Lines that can be read."""
        return [row for row in self.rows if isinstance(row, LogLine)]
