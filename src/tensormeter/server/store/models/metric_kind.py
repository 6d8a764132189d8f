"""The kind of a series: its OTLP kind with temporality and, for sums, monotonicity."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import numpy as np

from tensormeter.otlp.batch import Distribution, ExponentialHistogram, Gauge, Series, Sum, Summary, Temporality

__all__ = ["Kind", "KindName", "kind_of", "parse_kind", "series_of_kind"]

KindName = Literal["gauge", "sum", "histogram", "exponential_histogram", "summary"]


@dataclass(frozen=True)
class Kind:
    """The kind of a series.

    Attributes:
        name: OTLP kind.
        temporality: "delta", "cumulative" or "unspecified"; None for kinds without one.
        monotonic: Whether a sum never decreases; None for kinds other than sums.
    """

    name: KindName
    temporality: str | None = None
    monotonic: bool | None = None

    @property
    def numeric(self) -> bool:
        """Whether points are numbers rather than distributions."""
        return self.name in ("gauge", "sum")


def kind_of(series: Series) -> str:
    """Return the kind of a series as a string, such as `gauge`, `sum cumulative monotonic` or `histogram delta`.

    This string is part of the series' identity.
    """
    match series:
        case Gauge():
            return "gauge"
        case Sum():
            monotonic = " monotonic" if series.monotonic else ""
            return f"sum {series.temporality.name.lower()}{monotonic}"
        case Distribution():
            name = "exponential_histogram" if isinstance(series, ExponentialHistogram) else "histogram"
            return f"{name} {series.temporality.name.lower()}"
        case Summary():
            return "summary"
        case _:
            raise AssertionError(series)


def series_of_kind(text: str) -> Gauge | Sum:
    """Return an empty series of a numeric kind, given as a string returned by `kind_of`."""
    kind = parse_kind(text)
    none = np.empty(0, np.uint64)
    if kind.name == "gauge":
        return Gauge("", none, np.empty(0))
    temporality = Temporality[(kind.temporality or "unspecified").upper()]
    return Sum("", none, np.empty(0), none, monotonic=bool(kind.monotonic), temporality=temporality)


@lru_cache(64)
def parse_kind(text: str) -> Kind:
    """Parse a string returned by `kind_of`."""
    name, *rest = text.split()
    temporality = rest[0] if rest else None
    return Kind(cast("KindName", name), temporality, len(rest) > 1 if name == "sum" else None)
