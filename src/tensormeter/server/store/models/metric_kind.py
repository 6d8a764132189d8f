"""Kinds of series, as the store names them: OTLP's kind, its temporality, and whether sums are monotonic."""

from dataclasses import dataclass
from typing import Literal, cast

from tensormeter.otlp.batch import Distribution, ExponentialHistogram, Gauge, Series, Sum, Summary

__all__ = ["Kind", "KindName", "kind_of", "parse_kind"]

KindName = Literal["gauge", "sum", "histogram", "exponential_histogram", "summary"]


@dataclass(frozen=True)
class Kind:
    """A kind of series.

    Attributes:
        name: Kind as in OTLP.
        temporality: "delta", "cumulative" or "unspecified"; None for kinds without one.
        monotonic: Whether a sum never falls; None for kinds other than sums.
    """

    name: KindName
    temporality: str | None = None
    monotonic: bool | None = None

    @property
    def numeric(self) -> bool:
        """Whether points are numbers, not distributions."""
        return self.name in ("gauge", "sum")


def kind_of(series: Series) -> str:
    """Return the kind of a series as text, which is part of its identity: `gauge`, `sum cumulative monotonic`, `histogram delta`."""
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


def parse_kind(text: str) -> Kind:
    """Parse a text of `kind_of`."""
    name, *rest = text.split()
    temporality = rest[0] if rest else None
    return Kind(cast("KindName", name), temporality, len(rest) > 1 if name == "sum" else None)
