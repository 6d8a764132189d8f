"""Limits that every store enforces: points per read, and metric names and series per run."""

from collections.abc import Collection
from typing import Final

from tensormeter.conventions.limits import METRIC_NAMES
from tensormeter.server.store.models.errors import TooManyPointsError

__all__ = [
    "DELETED",
    "MAX_NAMES_PER_RUN",
    "MAX_SERIES_PER_RUN",
    "RESERVED",
    "check_limit",
    "is_reserved",
    "too_many_names",
    "too_many_series",
]

RESERVED: Final = "tensormeter."
"""Start of the metric names that tensormeter reserves."""


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


MAX_NAMES_PER_RUN: Final = METRIC_NAMES
"""Maximum number of metric names in a run, without those that tensormeter reserves; see `is_reserved`."""

MAX_SERIES_PER_RUN: Final = 8 * METRIC_NAMES
"""Maximum number of series in a run, which is enough for the maximum number of metrics of 8 ranks. Runs usually exceed it because attributes contain IDs or steps."""


def is_reserved(metric: str) -> bool:
    """Return whether tensormeter reserves the name of a metric, so that steps and losses are stored in any case."""
    return metric.startswith(RESERVED)


def too_many_names() -> str:
    """Return the reason for refusing points of a new metric in a run that has the maximum number of names."""
    return f"run has more than {MAX_NAMES_PER_RUN} metric names; use names without IDs or steps, or several runs"


def too_many_series() -> str:
    """Return the reason for refusing points of a new series in a run that has the maximum number of series."""
    return f"run has more than {MAX_SERIES_PER_RUN} series; use attributes without IDs or steps, or several runs"
