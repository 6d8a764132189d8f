"""Points of several metrics in one block, with a code for the metric of each point."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.run_requests import RunRequests

__all__ = ["add_coded_points"]


def _no_unit(name: str) -> str:
    return ""


def add_coded_points(
    requests: RunRequests,
    names: Sequence[str],
    codes: NDArray[np.int64],
    times: NDArray[np.int64],
    values: NDArray[np.float64],
    unit_of: Callable[[str], str] = _no_unit,
) -> None:
    """Add the points of a block metric by metric, in their order.

    Args:
        requests: The run.
        names: Names of the metrics.
        codes: Index of each point's metric in `names`, shape (n,).
        times: Times in nanoseconds since the Unix epoch, as `RunRequests.place` has returned them, shape (n,).
        values: Values, shape (n,).
        unit_of: Function that returns the unit of a metric.
    """
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))[:-1]
    for name, chosen in zip(names, np.split(order, ends), strict=True):
        if len(chosen):
            requests.placed_points(name, times[chosen], values[chosen], unit_of(name))
