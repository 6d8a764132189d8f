"""Sorting the points of a decoded request into series that can be stored, and reasons for the others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tensormeter.otlp.batch import SCOPE, Batch, Distribution, Gauge, Histogram, Scope, Series, Sum, Summary
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.encode import encode_points
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.metric_kind import kind_of
from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.rules.resource_identity import MAX_NAME, Source, identify

__all__ = ["Arrival", "Rejections", "arrivals_of"]

MAX_ATTRIBUTES_JSON: Final = 16_384
"""Maximum number of characters in the attributes of one series, as JSON."""

MAX_DISTRIBUTION_BYTES: Final = 65_536
"""Maximum number of bytes of one histogram or summary in protobuf, without attributes."""

_LAST_TIME: Final = (1 << 63) - 2  # the year 2262: the maximum of SQLite and NumPy, less one for the end of a range


@dataclass(frozen=True, slots=True)
class Arrival:
    """Points of one series of one source.

    Attributes:
        kind: Kind, see `kind_of`.
        scope: Instrumentation scope as text; "" for tensormeter's own.
        attributes: Canonical JSON.
    """

    source: Source
    metric: str
    kind: str
    scope: str
    attributes: str
    unit: str
    description: str
    points: Column


class Rejections(Counter[str]):
    """Number of refused items, by reason."""

    def describe(self, noun: str) -> str:
        """Return a text for people: "3 data points: time is missing; 1 data point: ..."; "" if nothing was refused."""
        return "; ".join(f"{count} {noun}{'' if count == 1 else 's'}: {reason}" for reason, count in self.items())


def arrivals_of(batches: Sequence[Batch], check: Check = no_check) -> tuple[list[Arrival], Rejections]:
    """Sort out the points that can be stored. The result depends only on the batches, so a replay gives the same result.

    Args:
        batches: Points of one request.
        check: Callable for each resource and series; an exception of it ends the work.
    """
    arrivals: list[Arrival] = []
    rejections = Rejections()
    scopes: dict[int, str] = {}
    """Texts of scopes by identity: all series of a scope share one object, which may have many attributes."""
    for batch in batches:
        check()
        source = identify(batch.resource)
        if isinstance(source, str):
            if batch.points:
                rejections[source] += batch.points
            continue
        for series in batch.series:
            check()
            attributes = canonical_json(series.attributes) if series.attributes else "{}"
            scope = scopes.get(id(series.scope))
            if scope is None:
                scope = scopes[id(series.scope)] = _scope(series.scope)
            if not series.name:
                rejections["metric has no name"] += len(series.times)
            elif len(series.name) > MAX_NAME or len(scope) > MAX_NAME:
                rejections[f"metric name or scope is longer than {MAX_NAME} characters"] += len(series.times)
            elif len(attributes) > MAX_ATTRIBUTES_JSON:
                rejections[f"attributes are longer than {MAX_ATTRIBUTES_JSON} characters as JSON"] += len(series.times)
            elif isinstance(series, Histogram) and (reason := _bucket_fault(series)):
                rejections[reason] += len(series.times)
            else:
                points = _timed(_column(series, rejections), rejections)
                if len(points):
                    unit, description = series.unit[:MAX_NAME], series.description[:MAX_NAME]
                    identity = (series.name, kind_of(series), scope, attributes, unit, description)
                    arrivals.append(Arrival(source, *identity, points))
    return arrivals, rejections


def _bucket_fault(series: Histogram) -> str:
    """Return the fault of a histogram's buckets, or ""."""
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
    timed = (points.times > 0) & (points.times <= _LAST_TIME)
    if timed.all():
        return points
    rejections[f"time is 0 or above {_LAST_TIME} ns"] += int(len(timed) - timed.sum())
    return points[timed]


def _scope(scope: Scope) -> str:
    """Return the text that identifies a scope: name and attributes. The series continue in a new version of the scope."""
    if scope.attributes:
        return canonical_json([scope.name, dict(scope.attributes)])
    return "" if scope.name == SCOPE.name else scope.name
