"""The events of a run that a reader asks for."""

from dataclasses import dataclass
from typing import Final

__all__ = ["ALL_EVENTS", "EventQuery"]


@dataclass(frozen=True)
class EventQuery:
    """Conditions on the events of a run, and limits of the answer.

    Attributes:
        name: Name of the events; a `*` at its end stands for any text. None for all names.
        key: Value of the events' attribute `tensormeter.key`; None for all events.
        start: Earliest time, in nanoseconds since the Unix epoch; None for no bound.
        stop: End of the range of times, exclusive; None for no bound.
        limit: Maximum number of events.
        before: Time and id of an event; only events that follow it in the answer, newest first, are returned.
        max_body: Maximum number of characters of a body as JSON; longer bodies are None. None for no limit.
    """

    name: str | None = None
    key: str | None = None
    start: int | None = None
    stop: int | None = None
    limit: int = 1000
    before: tuple[int, int] | None = None
    max_body: int | None = None


ALL_EVENTS: Final = EventQuery()
