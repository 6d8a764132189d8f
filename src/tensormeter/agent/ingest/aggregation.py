"""Aggregation of instrument measurements: counters, up-down counters, histograms and observed totals.

Each batch produces one point for every stream measured in it, at the time of the stream's last measurement. Observed
totals produce a point for each observation. The spool stores the states of the streams together with the batch, so no
measurement is lost or counted twice if the agent is killed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest import exponential_histogram
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import (
    SCOPE,
    Attribute,
    Buckets,
    ExponentialHistogram,
    Histogram,
    Scope,
    Series,
    Sum,
    Temporality,
)
from tensormeter.ring.layout import Stream

__all__ = ["AGGREGATED", "Aggregator", "Piece", "describe"]

logger: Final = get_logger("tensormeter.agent")

Piece = tuple[NDArray[np.uint64], NDArray[np.float64] | NDArray[np.int64]]
"""Times and values, as two arrays of equal length."""

_DELTA_KINDS: Final = {
    "cumulative": frozenset[str](),
    "delta": frozenset({"counter", "observable_counter", "histogram", "exponential"}),
    "lowmemory": frozenset({"counter", "histogram", "exponential"}),
}
"""Kinds of streams with delta temporality, by temporality preference (OTLP exporter specification)."""


class Aggregator:
    """The aggregated streams of one process. Repeat `fold` until the spool accepts its result, then call `commit`."""

    def __init__(self, states: Mapping[str, str], temporality: str) -> None:
        """
        Args:
            states: States of all streams in the spool.
            temporality: `cumulative`, `delta` or `lowmemory`.
        """
        self._delta = _DELTA_KINDS[temporality]
        self._aggregates: dict[str, Aggregate] = {
            key: _CLASSES[Stream.from_json(json.loads(key)).kind].from_json(json.loads(state))
            for key, state in states.items()
        }
        self._changed: dict[str, Aggregate] = {}

    @property
    def states(self) -> dict[str, str]:
        """States that `fold` has changed since the last `commit` or `discard`, by stream."""
        return {key: json.dumps(aggregate.to_json()) for key, aggregate in self._changed.items()}

    @property
    def refused(self) -> int:
        """Total number of values that could not be aggregated."""
        return sum(aggregate.refused for aggregate in self._aggregates.values())

    def fold(self, key: str, stream: Stream, pieces: Sequence[Piece]) -> Series | None:
        """Add the values of a stream.

        Args:
            key: JSON of the stream.
            stream: Stream of one of the kinds in `AGGREGATED`.
            pieces: Times and values, in any order.

        Returns:
            Series to send; None if no value could be aggregated.
        """
        before = self._aggregates.get(key) or _CLASSES[stream.kind]()
        least = 0.0 if stream.kind == "counter" else -math.inf
        accepted = [(times[good], values[good]) for times, values in pieces for good in [_aggregable(values, least)]]
        refused = sum(len(values) for _, values in pieces) - sum(len(values) for _, values in accepted)
        if refused and not before.refused:
            logger.warning("%s: rejected values that are NaN, infinite, or (in a counter) negative", stream.name)
        before = replace(before, refused=before.refused + refused)
        accepted = [piece for piece in accepted if len(piece[0])]
        if not accepted:
            self._changed[key] = before
            return None
        first = min(int(times.min()) for times, _ in accepted)
        last = max(before.time + 1, *(int(times.max()) for times, _ in accepted))
        delta = stream.kind in self._delta
        # A point covers the time after its start, up to and including its own time.
        start = first - 1 if before.time == 0 else before.time if delta else before.start
        self._changed[key], series = before.add(stream, accepted, start, last, delta=delta)
        return series

    def commit(self) -> None:
        """Keep the changes of the last calls to `fold`, whose results are now in the spool."""
        self._aggregates.update(self._changed)
        self._changed.clear()

    def discard(self) -> None:
        """Discard the changes, which are not in the spool. The same values will be folded again."""
        self._changed.clear()


@dataclass(frozen=True)
class Aggregate:
    """State of one stream; base class of the states below.

    Attributes:
        start: Start time of the points, in nanoseconds.
        time: Time of the last point; 0 if there was none.
        refused: Number of values that could not be aggregated.
    """

    start: int = 0
    time: int = 0
    refused: int = 0

    def add(
        self, stream: Stream, pieces: Sequence[Piece], start: int, time: int, *, delta: bool
    ) -> "tuple[Aggregate, Series]":
        """Add values, and return the new state and the series to send.

        Args:
            stream: Stream of the values.
            pieces: Times and values. Neither the list nor any piece may be empty.
            start: Start time of the point.
            time: Time of the point.
            delta: Whether the point covers only these values, and not all values so far.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        return cls(**state)


@dataclass(frozen=True)
class Total(Aggregate):
    """State of a counter or up-down counter. The value is an `int` until the first float arrives."""

    value: float = 0

    def add(
        self, stream: Stream, pieces: Sequence[Piece], start: int, time: int, *, delta: bool
    ) -> tuple[Aggregate, Series]:
        value = (0 if delta else self.value) + sum(_sum(values) for _, values in pieces)
        series = Sum(
            stream.name,
            np.array([time], np.uint64),
            _numbers([value]),
            np.array([start], np.uint64),
            monotonic=stream.kind == "counter",
            temporality=_temporality(delta=delta),
            **describe(stream),
        )
        return replace(self, start=start, time=time, value=value), series


@dataclass(frozen=True)
class Observed(Aggregate):
    """State of an observable counter or up-down counter. The program itself keeps the total."""

    value: float = 0

    def add(
        self, stream: Stream, pieces: Sequence[Piece], start: int, time: int, *, delta: bool
    ) -> tuple[Aggregate, Series]:
        monotonic = stream.kind == "observable_counter"
        points = sorted(
            (at, value) for times, values in pieces for at, value in zip(times.tolist(), values.tolist(), strict=True)
        )
        times: list[int] = []
        starts: list[int] = []
        sent: list[float] = []
        previous, last = self.value, self.time or start
        for observed_at, value in points:
            at = max(observed_at, last + 1)
            reset = monotonic and value < previous  # the program has started counting from zero again
            start = last if delta or reset else start
            starts.append(start)
            sent.append(value if not delta or reset else value - previous)
            times.append(at)
            previous, last = value, at
        series = Sum(
            stream.name,
            np.array(times, np.uint64),
            _numbers(sent),
            np.array(starts, np.uint64),
            monotonic=monotonic,
            temporality=_temporality(delta=delta),
            **describe(stream),
        )
        return replace(self, start=start, time=last, value=previous), series


@dataclass(frozen=True)
class Distribution(Aggregate):
    """State that both kinds of histogram share."""

    count: int = 0
    sum: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    def _add_values(self, values: NDArray[np.float64], start: int, time: int) -> Self:
        return replace(
            self,
            start=start,
            time=time,
            count=self.count + len(values),
            sum=self.sum + float(_sum(values)),
            minimum=min(self.minimum, float(values.min())),
            maximum=max(self.maximum, float(values.max())),
        )

    def _columns(self, stream: Stream) -> "_Columns":
        """Return the columns of one point. The sum is omitted if any value was negative.

        Source: metrics.proto, `HistogramDataPoint.sum`: "sum should not be filled out when" negative events are
        recorded.
        """
        return {
            "times": np.array([self.time], np.uint64),
            "start_times": np.array([self.start], np.uint64),
            "counts": np.array([self.count], np.uint64),
            "sums": np.array([math.nan if self.minimum < 0 else self.sum]),
            "minima": np.array([self.minimum if stream.record_min_max else math.nan]),
            "maxima": np.array([self.maximum if stream.record_min_max else math.nan]),
        }


@dataclass(frozen=True)
class Explicit(Distribution):
    """State of a histogram with explicit buckets."""

    buckets: Sequence[int] = ()

    def add(
        self, stream: Stream, pieces: Sequence[Piece], start: int, time: int, *, delta: bool
    ) -> tuple[Aggregate, Series]:
        values = _floats(pieces)
        bounds = np.array(stream.bounds, np.float64)
        added = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds) + 1).astype(np.uint64)
        before = Explicit(refused=self.refused) if delta else self
        buckets = added + np.array(before.buckets, np.uint64) if before.buckets else added
        after = replace(before._add_values(values, start, time), buckets=buckets.tolist())
        series = Histogram(
            stream.name,
            **after._columns(stream),
            bounds=bounds,
            buckets=buckets[np.newaxis],
            temporality=_temporality(delta=delta),
            **describe(stream),
        )
        return after, series


@dataclass(frozen=True)
class Exponential(Distribution):
    """State of a histogram with exponential buckets."""

    buckets: exponential_histogram.Buckets | None = None

    def add(
        self, stream: Stream, pieces: Sequence[Piece], start: int, time: int, *, delta: bool
    ) -> tuple[Aggregate, Series]:
        values = _floats(pieces)
        most, highest = map(int, stream.bounds)
        before = Exponential(refused=self.refused) if delta else self
        buckets = exponential_histogram.fold(
            before.buckets or exponential_histogram.Buckets(highest), values, most=most
        )
        after = replace(before._add_values(values, start, time), buckets=buckets)
        series = ExponentialHistogram(
            stream.name,
            **after._columns(stream),
            scales=np.array([buckets.scale], np.int64),
            zero_counts=np.array([buckets.zeros], np.uint64),
            zero_thresholds=np.zeros(1),
            positive=_side(buckets.positive),
            negative=_side(buckets.negative),
            temporality=_temporality(delta=delta),
            **describe(stream),
        )
        return after, series

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "buckets": vars(self.buckets) if self.buckets else None}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        stored = state["buckets"]
        sides = (
            {side: {int(i): n for i, n in stored[side].items()} for side in ("positive", "negative")} if stored else {}
        )
        buckets = exponential_histogram.Buckets(stored["scale"], stored["zeros"], **sides) if stored else None
        return cls(**{**state, "buckets": buckets})


_CLASSES: Final[Mapping[str, type[Aggregate]]] = {
    "counter": Total,
    "up_down_counter": Total,
    "observable_counter": Observed,
    "observable_up_down_counter": Observed,
    "histogram": Explicit,
    "exponential": Exponential,
}


AGGREGATED: Final = frozenset(_CLASSES)
"""Kinds of streams whose values this module aggregates."""


class _Columns(TypedDict):
    times: NDArray[np.uint64]
    start_times: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    sums: NDArray[np.float64]
    minima: NDArray[np.float64]
    maxima: NDArray[np.float64]


class _Metadata(TypedDict):
    unit: str
    description: str
    attributes: Mapping[str, Attribute]
    scope: Scope


def describe(stream: Stream) -> _Metadata:
    """Return the metadata that a stream's series needs."""
    name, version, schema_url, attributes = stream.scope or (SCOPE.name, SCOPE.version, SCOPE.schema_url, ())
    return {
        "unit": stream.unit,
        "description": stream.description,
        "attributes": dict(stream.attributes),
        "scope": Scope(name, version, schema_url, dict(attributes)) if stream.scope else SCOPE,
    }


def _temporality(*, delta: bool) -> Temporality:
    return Temporality.DELTA if delta else Temporality.CUMULATIVE


def _aggregable(values: NDArray[np.float64] | NDArray[np.int64], least: float) -> NDArray[np.bool_]:
    good: NDArray[np.bool_] = values >= least
    return good & np.isfinite(values) if values.dtype.kind == "f" else good


def _sum(values: NDArray[np.float64] | NDArray[np.int64]) -> float:
    """Return the sum of values. The sum of integers is exact, even if it needs more than 64 bits."""
    if values.dtype.kind == "i":
        return sum(map(int, values.tolist()))
    with np.errstate(over="ignore"):
        return float(values.sum())


def _numbers(values: list[float]) -> NDArray[np.float64] | NDArray[np.int64]:
    """Return values as an int64 array if all are integers that fit, and otherwise as a float64 array."""
    if all(type(value) is int and -(1 << 63) <= value < 1 << 63 for value in values):
        return np.array(values, np.int64)
    return np.array(values, np.float64)


def _floats(pieces: Sequence[Piece]) -> NDArray[np.float64]:
    return np.concatenate([values.astype(np.float64) for _, values in pieces])


def _side(counts: exponential_histogram.Counts) -> Buckets:
    if not counts:
        return Buckets(np.zeros(1, np.int64), [np.zeros(0, np.uint64)])
    first = min(counts)
    dense = np.zeros(max(counts) - first + 1, np.uint64)
    for index, count in counts.items():
        dense[index - first] = count
    return Buckets(np.array([first], np.int64), [dense])
