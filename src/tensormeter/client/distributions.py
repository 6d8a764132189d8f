"""Reader for all distributions of a metric, in blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.client.blocks import BlockReader
from tensormeter.client.connection import Connection
from tensormeter.client.histograms import parse_number

__all__ = ["BLOCK_DISTRIBUTIONS", "DistributionBlock", "distribution_reader"]

BLOCK_DISTRIBUTIONS: Final = 2048
"""Default number of distributions that the server reads per request.

A response with 2,048 distributions of 320 buckets each is about 20 MB of JSON.
"""

_MAX_BLOCK: Final = 20_000
"""Maximum number of distributions per request that the server allows."""


@dataclass(frozen=True, eq=False)
class DistributionBlock:
    """A block of n distributions of one series, sorted by time. Missing numbers are NaN.

    Attributes:
        process: ID of the process.
        attempt: Number of the attempt.
        metric: Name of the metric.
        kind: "histogram", "exponential_histogram" or "summary".
        temporality: "delta" or "cumulative"; "unspecified" if the sender did not specify it; None for a summary. A
            cumulative distribution counts all values since recording started.
        attributes: Attributes of the series.
        scope: Name of the instrumentation scope; "" for tensormeter itself or if there is none.
        unit: UCUM unit; "" if there is none.
        time: Times in nanoseconds since the Unix epoch: int64, shape (n,).
        step: Steps, with 0 for a missing step: int64, shape (n,).
        stepped: Whether each distribution has a step: bool, shape (n,).
        count: Number of values in each distribution: uint64, shape (n,).
        sum: Sum of each distribution: float64, shape (n,).
        min: Lowest value of each distribution: float64, shape (n,).
        max: Highest value of each distribution: float64, shape (n,).
        bounds: Bucket boundaries of each distribution: float64, shape (b,). Bucket i is (bounds[i-1], bounds[i]]; the
            first and last buckets are unbounded.
        counts: Bucket counts of each distribution: uint64, shape (b + 1,); empty if there are no buckets, as in a
            summary.
        quantiles: List of (quantile, value) pairs for each distribution; empty unless the series is a summary.
    """

    process: str
    attempt: int
    metric: str
    kind: str
    temporality: str | None
    attributes: Mapping[str, Any]
    time: NDArray[np.int64] = field(repr=False)
    step: NDArray[np.int64] = field(repr=False)
    stepped: NDArray[np.bool_] = field(repr=False)
    count: NDArray[np.uint64] = field(repr=False)
    sum: NDArray[np.float64] = field(repr=False)
    min: NDArray[np.float64] = field(repr=False)
    max: NDArray[np.float64] = field(repr=False)
    bounds: Sequence[NDArray[np.float64]] = field(repr=False)
    counts: Sequence[NDArray[np.uint64]] = field(repr=False)
    quantiles: Sequence[Sequence[tuple[float, float]]] = field(repr=False)
    scope: str = field(default="", kw_only=True)
    unit: str = field(default="", kw_only=True)

    def __len__(self) -> int:
        return len(self.time)


def distribution_reader(
    connection: Connection, run: tuple[str, str], metric: str, block: int = BLOCK_DISTRIBUTIONS
) -> BlockReader[DistributionBlock]:
    """Create a reader for one metric of one run.

    Args:
        connection: Connection to the server.
        run: Project and ID of the run.
        metric: Name of the metric.
        block: Maximum number of distributions that the server reads per request.
    """
    project, run_id = run

    def request(process: str | None, start: int, stop: int, limit: int) -> list[DistributionBlock]:
        document = connection.get(
            "runs", run_id, "distributions",
            project=project, metric=metric, process=process, start=start, stop=stop, limit=limit, attempt="all",
        )  # fmt: skip
        return [_block(metric, series) for series in document["series"]]

    return BlockReader(request, block, _MAX_BLOCK)


def _block(metric: str, series: Mapping[str, Any]) -> DistributionBlock:
    points = series["points"]

    def column(name: str) -> NDArray[np.float64]:
        return np.array([parse_number(point[name]) for point in points], np.float64)

    steps = [point["step"] for point in points]
    return DistributionBlock(
        series["process"],
        series["attempt"],
        metric,
        series["kind"],
        series["temporality"],
        series["attributes"],
        np.array([point["time"] for point in points], np.int64),
        np.array([0 if step is None else step for step in steps], np.int64),
        np.array([step is not None for step in steps], np.bool_),
        np.array([point["count"] for point in points], np.uint64),
        column("sum"),
        column("min"),
        column("max"),
        [np.array([parse_number(bound) for bound in point["bounds"]], np.float64) for point in points],
        [np.array(point["counts"], np.uint64) for point in points],
        [[(parse_number(q), parse_number(value)) for q, value in point.get("quantiles", ())] for point in points],
        scope=series.get("scope", ""),
        unit=series.get("unit", ""),
    )
