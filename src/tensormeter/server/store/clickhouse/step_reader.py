"""Reading of a process's steps at given times."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.models.points import Points

__all__ = ["POINT", "decode_points", "read_steps"]

POINT: Final = np.dtype([("time", "<i8"), ("word", "<i8"), ("integer", "u1")])


def decode_points(rows: NDArray[Any]) -> Points:
    """Return the points of rows of type `POINT`."""
    times, words = np.ascontiguousarray(rows["time"]), np.ascontiguousarray(rows["word"])
    return Points(times, words, rows["integer"].astype(np.bool_))


def read_steps(connection: Connection, run: int, steps: int, times: NDArray[np.int64]) -> Points:
    """Return the points of a step series at the given times, where there are any."""
    if not len(times):
        return Points.empty()
    # The condition on `time` lets ClickHouse read only the granules that contain one of these times.
    rows = connection.columns(
        f"SELECT time, word, integer FROM points WHERE run = {run} AND series = {steps} AND time GLOBAL IN"
        f" (SELECT fromUnixTimestamp64Nano(arrayJoin([{numbers(times.tolist())}]), 'UTC'))"
        " ORDER BY time, precedence DESC",
        POINT,
    )
    return decode_points(rows).distinct()
