"""A query for the events of a run."""

from dataclasses import dataclass
from typing import Final

__all__ = ["ALL_EVENTS", "EventQuery"]


@dataclass(frozen=True)
class EventQuery:
    """Conditions on the events of a run, and limits on the result.

    Attributes:
        name: Event name, in which a trailing `*` matches any text; None for all names.
        key: Value of the event attribute `tensormeter.key`; None for all events.
        start: Start of the time range, inclusive, in nanoseconds since the Unix epoch; None for no bound.
        stop: End of the time range, exclusive, in nanoseconds since the Unix epoch; None for no bound.
        limit: Maximum number of events.
        before: Time and ID of an event; only events with a lower (time, ID) are returned.
        max_body: Maximum number of characters in a JSON body; longer bodies are replaced with None. None for no limit.
    """

    name: str | None = None
    key: str | None = None
    start: int | None = None
    stop: int | None = None
    limit: int = 1000
    before: tuple[int, int] | None = None
    max_body: int | None = None


ALL_EVENTS: Final = EventQuery()
