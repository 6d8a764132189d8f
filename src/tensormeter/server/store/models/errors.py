"""What a store can answer instead of what was asked for."""

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
"""Characters of JSON that one read of events decodes: they take several times the memory then."""


class DamagedError(StoreError):
    """Something stored is not as it was written. It is not served; everything else is.

    Attributes:
        series: Row of the series that it belongs to, if it is one's.
        named: Whether the message says which run it is about.
    """

    def __init__(self, message: str, *, series: int | None = None, named: bool = False) -> None:
        super().__init__(message)
        self.series = series
        self.named = named


class NotFoundError(StoreError):
    """There is no such run."""


class AmbiguousRunError(StoreError):
    """Several projects have a run of this id, and none was named."""


class BatchConflictError(StoreError):
    """A batch id came a second time, with another payload."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"batch {batch_id!r} was stored with another payload; send this one under a new id")


class TooManyPointsError(StoreError):
    """A read would return more points than the store's limit."""


class TooManySeriesError(TooManyPointsError):
    """More series than one answer may have: a higher limit of points does not help."""


class StoreUnavailableError(StoreError):
    """The store cannot do this now, and may be able to later: disk full, too much waiting to be written, closing."""


class StoreFullError(StoreUnavailableError):
    """There is no room on the disk for this."""


class SuspectedDamageError(StoreUnavailableError):
    """SQLite calls the file damaged. After an I/O error it does so too, so the store checks the file before it reports damage."""
