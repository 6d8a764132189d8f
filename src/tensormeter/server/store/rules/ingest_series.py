"""Selection of the points in a decoded request that can be stored, by series, with reasons for refusing the others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import SCOPE, Batch, Distribution, Gauge, Histogram, Scope, Series, Sum, Summary
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.encode import encode_points
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.metric_kind import kind_of
from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.rules.resource_identity import MAX_NAME, Source, identify

__all__ = ["Arrival", "Rejections", "SeriesIdentity", "arrivals_of", "identify_series", "scope_text", "valid_times"]

MAX_ATTRIBUTES_JSON: Final = 16_384
"""Maximum number of characters in the attributes of a series as JSON."""

MAX_DISTRIBUTION_BYTES: Final = 65_536
"""Maximum number of bytes in a histogram or summary as protobuf, without attributes."""

_LAST_TIME: Final = (1 << 63) - 2  # year 2262, SQLite's and NumPy's maximum, minus one for an exclusive end


@dataclass(frozen=True, slots=True)
class Arrival:
    """The points of one series from one source.

    Attributes:
        kind: Kind; see `kind_of`.
        scope: Instrumentation scope; see `models.series.Series`.
        attributes: Attributes as canonical JSON.
    """

    source: Source
    metric: str
    kind: str
    scope: str
    attributes: str
    unit: str
    description: str
    points: Column

    @property
    def span(self) -> tuple[int, int]:
        """The earliest and the latest time."""
        return int(self.points.times.min()), int(self.points.times.max())


class SeriesIdentity(NamedTuple):
    """The values that identify a series within a process, and its unit and description. The fields are those of `Arrival`."""

    metric: str
    kind: str
    scope: str
    attributes: str
    unit: str
    description: str


class Rejections(Counter[str]):
    """Number of refused items, by reason."""

    def describe(self, noun: str) -> str:
        """Return a message such as "3 data points: metric has no name"; "" if nothing was refused.

        Several reasons are separated by semicolons.
        """
        return "; ".join(f"{count} {noun}{'' if count == 1 else 's'}: {reason}" for reason, count in self.items())


def arrivals_of(batches: Sequence[Batch], check: Check = no_check) -> tuple[list[Arrival], Rejections]:
    """Select the points that can be stored.

    The result depends only on the batches, so replaying them gives the same result.

    Args:
        batches: Points of one request.
        check: Function called for each resource and series; it can raise an exception to stop the work.

    Returns:
        The points that can be stored, by series; and the number of refused points, by reason.
    """
    arrivals: list[Arrival] = []
    rejections = Rejections()
    scopes: dict[int, str] = {}
    """Scopes as strings, by `id` of the scope object, so that each scope is encoded only once."""
    for batch in batches:
        check()
        source = identify(batch.resource)
        if isinstance(source, str):
            if batch.points:
                rejections[source] += batch.points
            continue
        for series in batch.series:
            check()
            scope = scopes.get(id(series.scope))
            if scope is None:
                scope = scopes[id(series.scope)] = scope_text(series.scope)
            identity = identify_series(series, scope)
            if isinstance(identity, str):
                rejections[identity] += len(series.times)
            elif isinstance(series, Histogram) and (reason := _bucket_fault(series)):
                rejections[reason] += len(series.times)
            else:
                points = _timed(_column(series, rejections), rejections)
                if len(points):
                    arrivals.append(Arrival(source, *identity, points))
    return arrivals, rejections


def identify_series(series: Series, scope: str) -> SeriesIdentity | str:
    """Return what identifies a series in the store, or the reason for refusing it. `scope` comes from `scope_text`."""
    attributes = canonical_json(series.attributes) if series.attributes else "{}"
    if not series.name:
        return "metric has no name"
    if len(series.name) > MAX_NAME or len(scope) > MAX_NAME:
        return f"metric name or scope is longer than {MAX_NAME} characters"
    if len(attributes) > MAX_ATTRIBUTES_JSON:
        return f"attributes are longer than {MAX_ATTRIBUTES_JSON} characters as JSON"
    return SeriesIdentity(
        series.name, kind_of(series), scope, attributes, series.unit[:MAX_NAME], series.description[:MAX_NAME]
    )


def _bucket_fault(series: Histogram) -> str:
    """Return a message about invalid histogram buckets; "" if they are valid."""
    bounds, counts = len(series.bounds), series.buckets.shape[1]
    if counts != (bounds + 1 if counts else bounds):
        return (
            f"histogram has {counts} bucket counts and {bounds} bounds; expected one count more than bounds, or neither"
        )
    if not (series.bounds[1:] > series.bounds[:-1]).all() or np.isnan(series.bounds).any():
        return "histogram bounds do not increase"
    return ""


def _column(series: Series, rejections: Rejections) -> Column:
    times = series.times.view(np.int64)
    match series:
        case Gauge() | Sum():
            return Points.of(times, series.values)
        case Distribution() | Summary():
            points = Blobs.of(times, encode_points(replace(series, attributes={})))
            small = np.array([len(blob) <= MAX_DISTRIBUTION_BYTES for blob in points.blobs], np.bool_)
            if not small.all():
                rejections[f"distribution is larger than {MAX_DISTRIBUTION_BYTES} bytes"] += int((~small).sum())
                points = points[small]
            return points
        case _:
            raise AssertionError(series)


def _timed(points: Column, rejections: Rejections) -> Column:
    timed = valid_times(points.times, rejections)
    return points if timed is None else points[timed]


def valid_times(times: NDArray[np.int64], rejections: Rejections) -> NDArray[np.bool_] | None:
    """Return a mask that selects the times that can be stored, or None if all can. Counts the others in `rejections`."""
    timed: NDArray[np.bool_] = (times > 0) & (times <= _LAST_TIME)
    if timed.all():
        return None
    rejections[f"time is 0 or above {_LAST_TIME} ns"] += int(len(timed) - timed.sum())
    return timed


def scope_text(scope: Scope) -> str:
    """Return a string that identifies a scope. It excludes the version, so that a series continues across versions."""
    if scope.attributes:
        return canonical_json([scope.name, dict(scope.attributes)])
    return "" if scope.name == SCOPE.name else scope.name
