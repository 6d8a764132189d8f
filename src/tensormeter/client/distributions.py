"""Every distribution of a metric, exactly as it was logged, piece by piece."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.client.blocks import BlockReader
from tensormeter.client.connection import Connection
from tensormeter.client.histograms import number_of

__all__ = ["BLOCK_DISTRIBUTIONS", "DistributionBlock", "distribution_reader"]

BLOCK_DISTRIBUTIONS: Final = 2048
"""Distributions that one request looks at, at most: with 320 buckets each some 20 MB of JSON."""

_MOST: Final = 20_000
"""The server's own limit."""


@dataclass(frozen=True, eq=False)
class DistributionBlock:
    """Some of the distributions of one series, by ascending time. n of them; those that lack a number have NaN.

    Attributes:
        process: Id of the process.
        attempt: Which attempt at the run it belongs to.
        metric: Name.
        kind: "histogram", "exponential_histogram" or "summary".
        temporality: "delta" or "cumulative", if that was said: of a cumulative one, each has all numbers since its start.
        attributes: Of the metric.
        scope: Name of the instrumentation scope that recorded it; "" for tensormeter itself, and if it has none.
        unit: UCUM unit, or "".
        time: int64, shape (n,): nanoseconds since the Unix epoch.
        step: int64, shape (n,): the step that was logged at that time; 0 where there was none.
        stepped: bool, shape (n,): where there was one.
        count: uint64, shape (n,): numbers in each.
        sum: float64, shape (n,).
        min: float64, shape (n,).
        max: float64, shape (n,).
        bounds: For each, float64, shape (b,): bucket i is (bounds[i-1], bounds[i]]; the first and the last are open.
        counts: For each, uint64, shape (b + 1,); none if there are no buckets, as in a summary.
        quantiles: For each, the pairs (quantile, value) of a summary.
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
    connection: Connection, run: tuple[str, str], metric: str, most: int = BLOCK_DISTRIBUTIONS
) -> BlockReader[DistributionBlock]:
    """A reader of one metric of one run.

    Args:
        connection: To the server.
        run: Project and id.
        metric: Name.
        most: Distributions that one request looks at, at most.
    """
    project, run_id = run

    def ask(process: str | None, start: int, stop: int, limit: int) -> list[DistributionBlock]:
        document = connection.get(
            "runs", run_id, "distributions",
            project=project, metric=metric, process=process, start=start, stop=stop, limit=limit, attempt="all",
        )  # fmt: skip
        return [_block(metric, one) for one in document["series"]]

    return BlockReader(ask, most, _MOST)


def _block(metric: str, one: Mapping[str, Any]) -> DistributionBlock:
    points = one["points"]

    def column(name: str) -> NDArray[np.float64]:
        return np.array([number_of(point[name]) for point in points], np.float64)

    steps = [point["step"] for point in points]
    return DistributionBlock(
        one["process"],
        one["attempt"],
        metric,
        one["kind"],
        one["temporality"],
        one["attributes"],
        np.array([point["time"] for point in points], np.int64),
        np.array([0 if step is None else step for step in steps], np.int64),
        np.array([step is not None for step in steps], np.bool_),
        np.array([point["count"] for point in points], np.uint64),
        column("sum"),
        column("min"),
        column("max"),
        [np.array([number_of(bound) for bound in point["bounds"]], np.float64) for point in points],
        [np.array(point["counts"], np.uint64) for point in points],
        [[(number_of(q), number_of(value)) for q, value in point.get("quantiles", ())] for point in points],
        scope=one.get("scope", ""),
        unit=one.get("unit", ""),
    )
