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
"""Maximum number of characters of JSON that one read of events decodes. Decoded, they take several times that memory."""


class DamagedError(StoreError):
    """Stored data has changed since it was written. Only the damaged data is not returned.

    Attributes:
        series: Row of the series that the damaged data belongs to, if any.
        named: Whether the message names the run.
    """

    def __init__(self, message: str, *, series: int | None = None, named: bool = False) -> None:
        super().__init__(message)
        self.series = series
        self.named = named


class NotFoundError(StoreError):
    """The requested run or image does not exist."""


class AmbiguousRunError(StoreError):
    """Several projects have a run with this id, and the request names no project."""


class BatchConflictError(StoreError):
    """A batch id was used again with another payload."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"batch {batch_id!r} was stored with another payload; send this one under a new id")


class TooManyPointsError(StoreError):
    """A read needs more points than the limit allows."""


class TooManySeriesError(TooManyPointsError):
    """An answer would have too many series: a higher limit of points does not help."""


class StoreUnavailableError(StoreError):
    """The store cannot do this now, but may later: the disk is full, too many points wait to be written, or it is closing."""


class StoreFullError(StoreUnavailableError):
    """The disk has no room for this."""


class SuspectedDamageError(StoreUnavailableError):
    """SQLite reports damage. It also does so after an I/O error, so the store checks the file before it reports damage."""
