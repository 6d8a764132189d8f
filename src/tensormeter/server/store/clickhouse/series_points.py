"""Reading of points by themselves, and of a process's steps at given times."""

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.models.points import Points

__all__ = ["read_points", "read_steps"]


def read_points(connection: Connection, source: str) -> Points:
    """Return the points of one series in the order of the statement.

    The statement consists of columns and `source`, which begins with FROM.
    """
    return Points(*connection.arrays(f"SELECT time, word, integer {source}", ("<i8", "<i8", "?")))


def read_steps(connection: Connection, run: int, steps: int, times: NDArray[np.int64]) -> Points:
    """Return the points of a step series at the given times, where there are any."""
    if not len(times):
        return Points.empty()
    # The condition on `time` lets ClickHouse read only the granules that contain one of these times.
    return read_points(
        connection,
        f"FROM points WHERE run = {run} AND series = {steps} AND time GLOBAL IN"
        f" (SELECT fromUnixTimestamp64Nano(arrayJoin([{numbers(times.tolist())}]), 'UTC'))"
        " ORDER BY time, precedence DESC",
    ).distinct()
