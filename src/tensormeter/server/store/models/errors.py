"""Errors that a store raises."""

from typing import Final

from tensormeter.errors import StoreError

__all__ = [
    "MAX_ANSWER_TEXT",
    "AmbiguousRunError",
    "BatchConflictError",
    "DamagedError",
    "NotFoundError",
    "StoreFullError",
    "StoreUnavailableError",
    "SuspectedDamageError",
    "TooManyPointsError",
    "TooManySeriesError",
]

MAX_ANSWER_TEXT: Final = 32 << 20
"""Maximum number of JSON characters to decode in one read of events.

The decoded values take several times as much memory as the JSON.
"""


class DamagedError(StoreError):
    """Stored data has changed since it was written. Undamaged data can still be read.

    Attributes:
        series: Row ID of the series with the damaged data, if any.
        named: Whether the message is already complete, so that `name_damage` adds no names or remedy to it.
    """

    def __init__(self, message: str, *, series: int | None = None, named: bool = False) -> None:
        super().__init__(message)
        self.series = series
        self.named = named


class NotFoundError(StoreError):
    """The requested run or image does not exist."""


class AmbiguousRunError(StoreError):
    """Several projects have a run with this ID, and the request does not specify the project."""


class BatchConflictError(StoreError):
    """A batch ID was reused with a different payload."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"batch {batch_id!r} was already stored with a different payload; send this payload under a new ID"
        )


class TooManyPointsError(StoreError):
    """A read needs more points than the limit allows."""


class TooManySeriesError(TooManyPointsError):
    """A response would contain too many series. Raising the point limit does not help."""


class StoreUnavailableError(StoreError):
    """The operation may succeed later. For example, the disk is full, or too many points await a flush."""


class StoreFullError(StoreUnavailableError):
    """The disk does not have enough free space."""


class SuspectedDamageError(StoreUnavailableError):
    """SQLite reported damage. The cause may be an I/O error, so the store checks the file before it reports damage."""
