"""Distributions of one series along an x axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histograms", "parse_number"]


@dataclass(frozen=True, eq=False)
class Histograms:
    """n distributions of one series, sorted by x. Missing numbers are NaN.

    Attributes:
        process: ID of the process; "" if there are no points.
        kind: "histogram", "exponential_histogram" or "summary"; "" if there are no points.
        attributes: Attributes of the series.
        scope: Name of the instrumentation scope; "" for tensormeter itself or if there is none.
        unit: UCUM unit; "" if there is none.
        total: Number of distributions in the range, which is greater than n if the server returned only some of them.
        x: Steps, seconds or another metric's values: float64, shape (n,).
        count: Number of values in each distribution: int64, shape (n,).
        sum: Sum of each distribution: float64, shape (n,).
        min: Lowest value of each distribution: float64, shape (n,).
        max: Highest value of each distribution: float64, shape (n,).
        bounds: Bucket boundaries of each distribution: float64, shape (b,). Bucket i is (bounds[i-1], bounds[i]]; the
            first and last buckets are unbounded.
        counts: Bucket counts of each distribution: int64, shape (b + 1,); empty if there are no buckets.
        quantiles: List of (quantile, value) pairs for each distribution; empty unless the series is a summary.
    """

    process: str
    kind: str
    attributes: Mapping[str, Any]
    total: int
    x: NDArray[np.float64] = field(repr=False)
    count: NDArray[np.int64] = field(repr=False)
    sum: NDArray[np.float64] = field(repr=False)
    min: NDArray[np.float64] = field(repr=False)
    max: NDArray[np.float64] = field(repr=False)
    bounds: Sequence[NDArray[np.float64]] = field(repr=False)
    counts: Sequence[NDArray[np.int64]] = field(repr=False)
    quantiles: Sequence[Sequence[tuple[float, float]]] = field(repr=False)
    scope: str = field(default="", kw_only=True)
    unit: str = field(default="", kw_only=True)

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Histograms":
        """Create the object from an API response."""
        points = document["points"]

        def column(name: str) -> NDArray[np.float64]:
            return np.array([parse_number(point[name]) for point in points], np.float64)

        return cls(
            document.get("process", ""),
            document.get("kind", ""),
            document.get("attributes", {}),
            document["total"],
            column("x"),
            np.array([point["count"] for point in points], np.int64),
            column("sum"),
            column("min"),
            column("max"),
            [np.array([parse_number(bound) for bound in point["bounds"]], np.float64) for point in points],
            [np.array(point["counts"], np.int64) for point in points],
            [[(parse_number(q), parse_number(value)) for q, value in point.get("quantiles", ())] for point in points],
            scope=document.get("scope", ""),
            unit=document.get("unit", ""),
        )


def parse_number(value: object) -> float:
    """Convert a number in the API's JSON to a float; a missing number becomes NaN."""
    return float("nan") if value is None else float(value)  # type: ignore[arg-type]  # also "NaN" and "Infinity"
