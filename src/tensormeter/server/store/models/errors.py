"""Errors of a store."""

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
"""Maximum number of JSON characters decoded per read of events. Decoded values take several times that memory."""


class DamagedError(StoreError):
    """Stored data has changed since it was written. Undamaged data can still be read.

    Attributes:
        series: Row ID of the series with the damaged data, if any.
        named: Whether the message names the run.
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
            f"batch {batch_id!r} was already stored with a different payload; send this payload under a new id"
        )


class TooManyPointsError(StoreError):
    """A read needs more points than the limit allows."""


class TooManySeriesError(TooManyPointsError):
    """A response would contain too many series. Raising the limit on points does not help."""


class StoreUnavailableError(StoreError):
    """The store cannot do this now but may later: the disk is full, too many points await writing, or it is closing."""


class StoreFullError(StoreUnavailableError):
    """The disk does not have enough free space."""


class SuspectedDamageError(StoreUnavailableError):
    """SQLite reported damage. I/O errors can also cause this, so the store checks the file before it reports damage."""
