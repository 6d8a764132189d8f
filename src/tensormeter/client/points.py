"""Readers for all points of a metric, and of many metrics with few points each, in blocks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.client.blocks import BlockReader
from tensormeter.client.connection import ApiError, Connection
from tensormeter.client.series import read_column

__all__ = ["BLOCK_POINTS", "PointBlock", "point_reader", "read_many"]

BLOCK_POINTS: Final = 500_000
"""Default number of points that the server reads per request. This many points use about 12 MB of memory."""

_MAX_BLOCK: Final = 20_000_000
"""Maximum number of points per request that the server allows."""


_GROUP_NAMES: Final = 1000
"""Maximum number of metrics per request that the server allows."""

_GROUP_POINTS: Final = 50_000
"""Maximum number of points, by the list of metrics, of metrics that are requested together.

A metric with more points has little to gain from it. Up to twice as many points, the server answers without waiting for
its turn.
"""

_TOO_LARGE: Final = 413
_METHOD_NOT_ALLOWED: Final = 405


@dataclass(frozen=True, eq=False)
class PointBlock:
    """A block of n points of one series, sorted by time.

    Attributes:
        process: ID of the process.
        attempt: Number of the attempt.
        metric: Name of the metric.
        kind: "gauge" or "sum".
        attributes: Attributes of the series.
        scope: Name of the instrumentation scope; "" for tensormeter itself or if there is none.
        unit: UCUM unit; "" if there is none.
        temporality: "delta" or "cumulative" for a sum; "unspecified" if the sender did not specify it; None for a gauge.
        time: Times in nanoseconds since the Unix epoch: int64, shape (n,).
        step: Steps, with 0 for a missing step: int64, shape (n,).
        stepped: Whether each point has a step: bool, shape (n,).
        value: Values: float64, shape (n,). Floats are bit-exact; integers outside ±2^53 are rounded.
        integer: Exact values of integers, with 0 for other values: int64, shape (n,).
        is_integer: Whether each value was logged as an integer: bool, shape (n,).
        monotonic: Whether the sum never decreases; None for a gauge.
        gaps: Times at which the sender reported a missing value: int64, ascending.
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
    monotonic: bool | None = field(default=None, kw_only=True)
    gaps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), kw_only=True, repr=False)

    def __len__(self) -> int:
        return len(self.time)

    def before(self, stop: int) -> "PointBlock":
        """Return the points before a time."""
        n = int(np.searchsorted(self.time, stop))
        if n == len(self):
            return self
        arrays = {
            name: getattr(self, name)[:n] for name in ("time", "step", "stepped", "value", "integer", "is_integer")
        }
        return replace(self, **arrays, gaps=self.gaps[self.gaps < stop])


def point_reader(
    connection: Connection, run: tuple[str, str], metric: str, block: int = BLOCK_POINTS
) -> BlockReader[PointBlock]:
    """Create a reader for one gauge or sum of one run.

    Args:
        connection: Connection to the server.
        run: Project and ID of the run.
        metric: Name of the metric.
        block: Maximum number of points that the server reads per request, including step points.
    """
    project, run_id = run

    def request(process: str | None, start: int, stop: int, limit: int) -> list[PointBlock]:
        header, data = connection.columns(
            "runs", run_id, "series",
            project=project, metric=metric, x="time", process=process, start=start, stop=stop, limit=limit,
            attempt="all",
        )  # fmt: skip
        return [_block(metric, series, data) for series in header["series"]]

    return BlockReader(request, block, _MAX_BLOCK)


def read_many(
    connection: Connection,
    run: tuple[str, str],
    metrics: Mapping[str, tuple[int, int]],
    read_one: Callable[[str, int], Iterator[PointBlock]],
    block: int = BLOCK_POINTS,
) -> Iterator[PointBlock]:
    """Read metrics one after another, but request metrics with few points together.

    Args:
        connection: Connection to the server.
        run: Project and ID of the run.
        metrics: Approximate number of points, and exclusive end of the time range, of each gauge or sum.
        read_one: Function that reads a metric that the server cannot return together with others. Its arguments are the
            name and the end of the time range.
        block: Maximum number of points that the server reads per request, including step points.
    """
    pending = [*_groups(metrics, min(block, _GROUP_POINTS))][::-1]
    while pending:
        names = pending.pop()
        if len(names) == 1:
            yield from read_one(names[0], metrics[names[0]][1])
            continue
        try:
            blocks = _request_many(connection, run, names, max(metrics[name][1] for name in names), block)
        except ApiError as error:
            if error.status == _METHOD_NOT_ALLOWED:  # an older server
                pending += [[name] for name in reversed(names)]
                continue
            if error.status != _TOO_LARGE:
                raise
            middle = len(names) // 2
            pending += [names[middle:], names[:middle]]
            continue
        for name in names:
            for points in blocks.pop(name, ()):
                trimmed = points.before(metrics[name][1])
                if len(trimmed):
                    yield trimmed


def _groups(metrics: Mapping[str, tuple[int, int]], most: int) -> Iterator[list[str]]:
    """Divide metrics into groups with up to `most` points, or with a single metric."""
    group: list[str] = []
    total = 0
    for name, (points, _) in metrics.items():
        if group and (total + points > most or len(group) == _GROUP_NAMES):
            yield group
            group, total = [], 0
        group.append(name)
        total += points
    if group:
        yield group


def _request_many(
    connection: Connection, run: tuple[str, str], names: Sequence[str], stop: int, limit: int
) -> dict[str, list[PointBlock]]:
    """Request the blocks of several metrics. Return them by metric."""
    project, run_id = run
    query = {"metrics": names, "x": "time", "start": 1, "stop": stop, "limit": limit, "attempt": "all"}
    header, data = connection.columns("runs", run_id, "series", project=project, document=query)
    blocks: dict[str, list[PointBlock]] = {}
    for series in header["series"]:
        blocks.setdefault(series["metric"], []).append(_block(series["metric"], series, data))
    return blocks


def _block(metric: str, series: Mapping[str, Any], data: memoryview) -> PointBlock:
    time, words = read_column(data, series["time"]), read_column(data, series["value"])
    n = len(time)
    is_integer = (
        read_column(data, series["integers"]).astype(np.bool_) if "integers" in series else np.zeros(n, np.bool_)
    )
    integer = np.where(is_integer, words, 0)
    value = np.where(is_integer, words.astype(np.float64), words.view(np.float64))
    if not is_integer.any():
        value = words.view(np.float64)  # preserves all bits of NaNs
    step = read_column(data, series["step"])
    stepped = read_column(data, series["stepped"]).astype(np.bool_) if "stepped" in series else np.ones(n, np.bool_)
    return PointBlock(
        series["process"],
        series["attempt"],
        metric,
        series["kind"],
        series["attributes"],
        time,
        step,
        stepped,
        value,
        integer,
        is_integer,
        scope=series.get("scope", ""),
        unit=series.get("unit", ""),
        temporality=series.get("temporality"),
        monotonic=series.get("monotonic"),
        gaps=read_column(data, series["gaps"]) if "gaps" in series else np.empty(0, np.int64),
    )
