"""What a store can answer instead of what was asked for."""

from tensormeter.errors import StoreError

__all__ = [
    "AmbiguousRunError",
    "BatchConflictError",
    "NotFoundError",
    "StoreUnavailableError",
    "TooManyPointsError",
]


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


class StoreUnavailableError(StoreError):
    """The store cannot do this now, and may be able to later: disk full, too much waiting to be written, closing."""
