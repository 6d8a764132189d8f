"""Distributions over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histograms", "number_of"]


@dataclass(frozen=True, eq=False)
class Histograms:
    """Distributions of one series, by ascending x. n of them; those that lack a number have NaN.

    Attributes:
        process: Id of the process; "" if there are no points.
        kind: "histogram", "exponential_histogram" or "summary"; "" if there are no points.
        attributes: Of the metric.
        scope: Name of the instrumentation scope that recorded it; "" for tensormeter itself, and if it has none.
        unit: UCUM unit, or "".
        total: How many there are in the range; more than n if evenly chosen ones were read.
        x: float64, shape (n,): steps, seconds, or another metric's values.
        count: int64, shape (n,): numbers in each.
        sum: float64, shape (n,).
        min: float64, shape (n,).
        max: float64, shape (n,).
        bounds: For each, float64, shape (b,): bucket i is (bounds[i-1], bounds[i]]; the first and the last are open.
        counts: For each, int64, shape (b + 1,); of a summary none.
        quantiles: For each, the pairs (quantile, value) of a summary.
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
        """From the answer of the API."""
        points = document["points"]

        def column(name: str) -> NDArray[np.float64]:
            return np.array([number_of(point[name]) for point in points], np.float64)

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
            [np.array([number_of(bound) for bound in point["bounds"]], np.float64) for point in points],
            [np.array(point["counts"], np.int64) for point in points],
            [[(number_of(q), number_of(value)) for q, value in point.get("quantiles", ())] for point in points],
            scope=document.get("scope", ""),
            unit=document.get("unit", ""),
        )


def number_of(value: object) -> float:
    """A number of the API's JSON: NaN if it is missing."""
    return float("nan") if value is None else float(value)  # type: ignore[arg-type]  # "NaN" and "Infinity" as well
