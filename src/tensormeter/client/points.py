"""Every point of a metric, exactly as it was logged, piece by piece."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.client.blocks import BlockReader
from tensormeter.client.connection import Connection
from tensormeter.client.series import take

__all__ = ["BLOCK_POINTS", "PointBlock", "point_reader"]

BLOCK_POINTS: Final = 500_000
"""Points that one request looks at, at most: some 12 MB on both sides."""

_MOST: Final = 20_000_000
"""The server's own limit."""


@dataclass(frozen=True, eq=False)
class PointBlock:
    """Some of the points of one series, by ascending time.

    Attributes:
        process: Id of the process.
        attempt: Which attempt at the run it belongs to.
        metric: Name.
        kind: "gauge" or "sum".
        attributes: Of the metric.
        scope: Name of the instrumentation scope that recorded it; "" for tensormeter itself, and if it has none.
        unit: UCUM unit, or "".
        temporality: "delta" or "cumulative" of a sum, if that was said; else None.
        time: int64, shape (n,): nanoseconds since the Unix epoch.
        step: int64, shape (n,): the step that was logged at that time; 0 where there was none.
        stepped: bool, shape (n,): where there was one.
        value: float64, shape (n,): bit for bit; integers outside ±2^53 are rounded.
        integer: int64, shape (n,): the exact values where `is_integer`; elsewhere 0.
        is_integer: bool, shape (n,): which values were logged as integers.
    """

    process: str
    attempt: int
    metric: str
    kind: str
    attributes: Mapping[str, Any]
    time: NDArray[np.int64] = field(repr=False)
    step: NDArray[np.int64] = field(repr=False)
    stepped: NDArray[np.bool_] = field(repr=False)
    value: NDArray[np.float64] = field(repr=False)
    integer: NDArray[np.int64] = field(repr=False)
    is_integer: NDArray[np.bool_] = field(repr=False)
    scope: str = field(default="", kw_only=True)
    unit: str = field(default="", kw_only=True)
    temporality: str | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.time)


def point_reader(
    connection: Connection, run: tuple[str, str], metric: str, most: int = BLOCK_POINTS
) -> BlockReader[PointBlock]:
    """A reader of one gauge or sum of one run.

    Args:
        connection: To the server.
        run: Project and id.
        metric: Name.
        most: Points that one request looks at, at most, the steps at their times among them.
    """
    project, run_id = run

    def ask(process: str | None, start: int, stop: int, limit: int) -> list[PointBlock]:
        header, data = connection.columns(
            "runs", run_id, "series",
            project=project, metric=metric, x="time", process=process, start=start, stop=stop, limit=limit,
            attempt="all",
        )  # fmt: skip
        return [_block(metric, one, data) for one in header["series"]]

    return BlockReader(ask, most, _MOST)


def _block(metric: str, one: Mapping[str, Any], data: memoryview) -> PointBlock:
    time, words = take(data, one["time"]), take(data, one["value"])
    n = len(time)
    is_integer = take(data, one["integers"]).astype(np.bool_) if "integers" in one else np.zeros(n, np.bool_)
    integer = np.where(is_integer, words, 0)
    value = np.where(is_integer, words.astype(np.float64), words.view(np.float64))
    if not is_integer.any():
        value = words.view(np.float64)  # every bit of every NaN
    step = take(data, one["step"])
    stepped = take(data, one["stepped"]).astype(np.bool_) if "stepped" in one else np.ones(n, np.bool_)
    return PointBlock(
        one["process"],
        one["attempt"],
        metric,
        one["kind"],
        one["attributes"],
        time,
        step,
        stepped,
        value,
        integer,
        is_integer,
        scope=one.get("scope", ""),
        unit=one.get("unit", ""),
        temporality=one.get("temporality"),
    )
