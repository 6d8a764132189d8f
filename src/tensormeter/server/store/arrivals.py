"""What of a decoded request can be stored, series by series, and what cannot and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.server.store.canonical import canonical_json
from tensormeter.server.store.points import Points
from tensormeter.server.store.source import MAX_NAME, Source, identify

__all__ = ["Arrival", "Rejections", "arrivals_of"]

MAX_ATTRIBUTES_JSON: Final = 16_384
"""Characters in the attributes of one series, as JSON."""

_LAST_TIME: Final = (1 << 63) - 2  # the year 2262; SQLite and NumPy both end there, and a range needs one past it


@dataclass(frozen=True)
class Arrival:
    """Points of one series of one source; `attributes` as canonical JSON."""

    source: Source
    metric: str
    attributes: str
    unit: str
    description: str
    points: Points


class Rejections(Counter[str]):
    """How many items were refused, by reason."""

    def describe(self, noun: str) -> str:
        """For people: "3 data points: time is missing; 1 data point: ..."; "" if nothing was refused."""
        return "; ".join(f"{count} {noun}{'' if count == 1 else 's'}: {reason}" for reason, count in self.items())


def arrivals_of(batches: Sequence[Batch]) -> tuple[list[Arrival], Rejections]:
    """Sort out what can be stored. Depends on nothing but its argument, so that a replay comes out the same."""
    arrivals: list[Arrival] = []
    rejections = Rejections()
    for batch in batches:
        source = identify(batch.resource)
        if isinstance(source, str):
            if batch.points:
                rejections[source] += batch.points
            continue
        for gauge in batch.series:
            if not isinstance(gauge, Gauge):
                rejections[f"a {type(gauge).__name__} is not stored yet; send gauges"] += len(gauge.times)
                continue
            attributes = canonical_json(gauge.attributes)
            if not gauge.name:
                rejections["metric has no name"] += len(gauge.times)
                continue
            if len(gauge.name) > MAX_NAME:
                rejections[f"metric name is longer than {MAX_NAME} characters"] += len(gauge.times)
                continue
            if len(attributes) > MAX_ATTRIBUTES_JSON:
                rejections[f"attributes are longer than {MAX_ATTRIBUTES_JSON} characters as JSON"] += len(gauge.times)
                continue
            points = Points.of(gauge.times.view(np.int64), gauge.values)
            timed = (points.times > 0) & (points.times <= _LAST_TIME)
            if not timed.all():
                rejections[f"time is 0 or above {_LAST_TIME} ns"] += int(len(timed) - timed.sum())
                points = points[timed]
            if len(points):
                arrivals.append(
                    Arrival(
                        source, gauge.name, attributes, gauge.unit[:MAX_NAME], gauge.description[:MAX_NAME], points
                    ),
                )
    return arrivals, rejections
