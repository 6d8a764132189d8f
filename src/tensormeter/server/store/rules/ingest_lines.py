"""Log lines of a request, sorted by their senders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tensormeter.otlp.batch import Attribute, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.rules.events import refusal
from tensormeter.server.store.rules.ingest_series import Rejections
from tensormeter.server.store.rules.log_lines import PreparedLine, is_line, prepare_line
from tensormeter.server.store.rules.resource_identity import Source, identify

__all__ = ["LineArrival", "line_arrivals"]

_MOST: Final = 1_000
"""Maximum number of lines in an arrival. A store writes each arrival in one transaction, which takes some 12 ms."""


@dataclass(frozen=True)
class LineArrival:
    """Lines that a process has sent.

    Attributes:
        lines: Time in nanoseconds since the Unix epoch, and stored form of each line.
    """

    source: Source
    lines: Sequence[tuple[int, PreparedLine]]

    @property
    def span(self) -> tuple[int, int]:
        """Earliest and latest time of the lines."""
        times = [time for time, _ in self.lines]
        return min(times), max(times)


def line_arrivals(
    resources: Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]],
    received: int,
    rejections: Rejections,
    check: Check = no_check,
) -> Iterator[LineArrival]:
    """Yield the lines of a request in parts, and count refused lines in `rejections`.

    Args:
        resources: Log records by resource. Those with an event name are left out.
        received: Time for records that have none, in nanoseconds since the Unix epoch.
        rejections: Counts of refused records by reason.
        check: Function called for each line. It can raise an exception to stop.
    """
    for attributes, events in resources:
        records = [event for event in events if is_line(event)]
        if not records:
            continue
        source = identify(attributes)
        if isinstance(source, str):
            rejections[source] += len(records)
            continue
        lines: list[tuple[int, PreparedLine]] = []
        for event in records:
            check()
            moment = event.time or received
            line = refusal(event, moment) or prepare_line(event, source.process)
            if isinstance(line, str):
                rejections[line] += 1
                continue
            lines.append((moment, line))
            if len(lines) == _MOST:
                yield LineArrival(source, lines)
                lines = []
        if lines:
            yield LineArrival(source, lines)
