"""Limits that every store enforces: points per read, and series per run."""

from collections.abc import Collection
from typing import Final

from tensormeter.server.store.models.errors import TooManyPointsError

__all__ = ["DELETED", "MAX_SERIES_PER_RUN", "check_limit"]


def check_limit(total: int, limit: int, metrics: Collection[str]) -> None:
    """Refuse a read of more than `limit` points.

    Args:
        total: Number of points that the read needs.
        limit: Maximum number of points.
        metrics: Names of the metrics, for the error message.

    Raises:
        TooManyPointsError: `total` exceeds `limit`.
    """
    if total > limit:
        names = sorted(metrics)
        raise TooManyPointsError(
            f"{', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}: {total} points, but the limit "
            f"for one request is {limit}; request fewer metrics, a single process with `process`, or a time range "
            "with `start` and `stop`",
        )


DELETED: Final = "the run was deleted; start it again, or use another ID"
"""Reason for refusing points and events of a deleted run."""


MAX_SERIES_PER_RUN: Final = 4_000_000
"""Maximum number of series in a run, which is enough for 500,000 metrics of 8 ranks. Runs usually exceed it because names or attributes contain IDs or steps."""
