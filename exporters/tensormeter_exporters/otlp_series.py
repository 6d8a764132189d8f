"""Requests for destinations that are not OTLP: series with their steps, and events.

The step of a value is that of the gauge `tensormeter.step` of the same process at the same time: a join, as in the server.
A row is never split over two requests, so it is always in the same one.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.conventions.semconv import RUN_ID, RUN_NAME, SERVICE_INSTANCE_ID, SERVICE_NAME, STEP_METRIC
from tensormeter.exporter import Request
from tensormeter.otlp.batch import (
    SCOPE,
    Attribute,
    Batch,
    Distribution,
    Event,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Series,
    Sum,
    Summary,
    Value,
)
from tensormeter.otlp.buckets import explicit_buckets
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.media import Media, media_of
from tensormeter_exporters.names import suffix_of
from tensormeter_exporters.request_bodies import decoding, decompress

__all__ = [
    "Scalars",
    "Speaker",
    "Spoken",
    "SteppedSeries",
    "bucket_edges",
    "flatten",
    "read_events",
    "read_metrics",
    "scalars",
]

_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True)
class Speaker:
    """The process of a run that says something.

    Attributes:
        project: `service.name`.
        run: Id of the run.
        name: Of the run, for people.
        process: `service.instance.id`.
    """

    project: str
    run: str
    name: str
    process: str

    @classmethod
    def of(cls, resource: Mapping[str, Attribute]) -> "Speaker":
        """From the resource; what is not tensormeter's own is a run by its instance."""
        process = str(resource.get(SERVICE_INSTANCE_ID) or "unknown")
        run = str(resource.get(RUN_ID) or process)
        return cls(
            project=str(resource.get(SERVICE_NAME) or "default"),
            run=run,
            name=str(resource.get(RUN_NAME) or run),
            process=process,
        )


@dataclass(frozen=True)
class SteppedSeries:
    """A series and where its points stand on the axis of steps.

    Attributes:
        speaker: Whose it is.
        series: The points.
        steps: int64, shape (n,). Where a point has none (a sensor's), the Unix time in seconds, which needs no memory and
            is the same when a request comes again.
        stepped: Whether each point has one, bool, shape (n,).
    """

    speaker: Speaker
    series: Series
    steps: NDArray[np.int64]
    stepped: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The metric's name, and its attributes if it has any: `hw.power{hw.id=GPU-0}`."""
        attributes = self.series.attributes
        listed = ",".join(f"{key}={attributes[key]}" for key in sorted(attributes))
        return f"{self.series.name}{{{listed}}}" if listed else self.series.name

    @property
    def identity(self) -> str:
        """What tells the series from all others of its process, also where the names are equal; the name if that does."""
        series = self.series
        scope = [] if series.scope.name in ("", SCOPE.name) else [series.scope.name, series.scope.version]
        if not series.attributes and not scope:
            return series.name
        return repr([series.name, sorted((key, repr(value)) for key, value in series.attributes.items()), *scope])


@dataclass(frozen=True)
class Spoken:
    """An event of a process.

    Attributes:
        speaker: Whose it is.
        event: The event.
        media: What it carries, if it is a table, an image, a text or an alert.
        step: Of what it carries.
        error: What is wrong with it, if it should carry something and does not.
    """

    speaker: Speaker
    event: Event
    media: Media | None = None
    step: int | None = None
    error: str = ""

    @property
    def axis_step(self) -> int:
        """The step, or as for a point that has none."""
        return self.event.time // _NANOSECONDS if self.step is None else self.step

    @property
    def body(self) -> Mapping[str, Value]:
        """The event's body, if it is a mapping; else nothing."""
        return self.event.body if isinstance(self.event.body, Mapping) else {}


@dataclass(frozen=True)
class Scalars:
    """Plain numbers made from a series.

    Attributes:
        name: The series' name, or with `/mean` and the like behind it, for what is not a number.
        values: float64 or int64, shape (n,).
        part: `/mean` and the like, or "".
        statistic: Whether a NaN stands for no value; else it is one.
    """

    name: str
    values: NDArray[np.float64] | NDArray[np.int64]
    part: str = ""
    statistic: bool = False

    @property
    def present(self) -> NDArray[np.bool_]:
        """Where there is a value, shape (n,)."""
        return ~np.isnan(self.values) if self.statistic else np.ones(len(self.values), np.bool_)


def read_metrics(request: Request) -> list[SteppedSeries]:
    """Every series of a metrics request but the steps themselves.

    Raises:
        EncodingError: The body is not what it claims to be. Nothing else is raised.
    """
    body = decompress(request)
    with decoding(request):
        batches = decode_metrics(body)
        steps = _steps(batches)
        return [
            SteppedSeries(speaker, series, *_join(series.times, steps.get(speaker.process)))
            for batch in batches
            for speaker in [Speaker.of(batch.resource)]
            for series in batch.series
            if series.name != STEP_METRIC
        ]


def read_events(request: Request) -> list[Spoken]:
    """Every event of a logs request.

    Raises:
        EncodingError: The body is not what it claims to be. Nothing else is raised.
    """
    found = []
    body = decompress(request)
    with decoding(request):
        for resource, events in decode_events(body):
            speaker = Speaker.of(resource)
            for event in events:
                try:
                    media, step = media_of(event) or (None, None)
                    found.append(Spoken(speaker, event, media, step))
                except Exception as error:  # of whatever kind: it costs this event alone
                    found.append(Spoken(speaker, event, error=f"{event.name}: {error}"))
    return found


def scalars(stepped: SteppedSeries) -> Iterator[Scalars]:
    """A series as plain numbers: itself, or the statistics of what is not one number a point."""
    series, name = stepped.series, stepped.name
    if isinstance(series, Gauge | Sum):
        yield Scalars(name, series.values)
    elif isinstance(series, Distribution):
        with np.errstate(all="ignore"):
            means = series.sums / series.counts
        yield Scalars(f"{name}/count", series.counts.astype(np.int64), "/count")
        for part, values in (("/mean", means), ("/min", series.minima), ("/max", series.maxima)):
            yield Scalars(f"{name}{part}", values, part, statistic=True)
    elif isinstance(series, Summary):
        yield Scalars(f"{name}/count", series.counts.astype(np.int64), "/count")
        for quantile, values in zip(series.quantiles.tolist(), series.values.T, strict=True):
            part = f"/p{quantile * 100:g}"
            yield Scalars(f"{name}{part}", values, part)


def bucket_edges(series: Distribution, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One distribution as (edges, counts), with finite increasing edges, shape (k + 1,) and (k,).

    Open ends reach to the minimum and maximum, or where they are unknown as far as the bucket next to them is wide. Empty open
    ends are left out. Zeros of exponential histograms have a bucket of their own, see `explicit_buckets`.
    """
    if isinstance(series, Histogram):
        bounds, counts = series.bounds.tolist(), series.buckets[index].tolist()
    elif isinstance(series, ExponentialHistogram):
        bounds, counts = explicit_buckets(
            int(series.scales[index]),
            int(series.zero_counts[index]),
            float(series.zero_thresholds[index]),
            (int(series.positive.offsets[index]), series.positive.counts[index]),
            (int(series.negative.offsets[index]), series.negative.counts[index]),
        )
    else:
        raise TypeError(f"not a histogram: {type(series).__name__}")
    if not len(counts):
        center = float(np.nan_to_num(series.sums[index] / max(int(series.counts[index]), 1)))
        return np.array([center, np.nextafter(center, np.inf)]), series.counts[index : index + 1].astype(np.float64)
    return _closed(bounds, counts, float(series.minima[index]), float(series.maxima[index]))


def flatten(config: Mapping[str, object]) -> dict[str, object]:
    """Nested mappings as one, with keys joined by dots. Of `{"a.b": 1, "a": {"b": 2}}` the former gets a suffix."""
    leaves = list(_leaves(config, ()))
    paths = Counter(".".join(path) for path, _ in leaves)
    flat: dict[str, object] = {}
    for path, value in leaves:
        name = ".".join(path)
        ambiguous = paths[name] > 1 and any("." in key for key in path)
        flat[f"{name}{suffix_of(repr(path))}" if ambiguous else name] = value
    return flat


def _leaves(config: Mapping[str, object], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    for key, value in config.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def _steps(batches: Sequence[Batch]) -> dict[str, tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Times and steps of each process's rows, in order of time."""
    pieces: dict[str, list[Gauge]] = {}
    for batch in batches:
        process = Speaker.of(batch.resource).process
        pieces.setdefault(process, []).extend(gauge for gauge in batch.gauges if gauge.name == STEP_METRIC)
    found = {}
    for process, gauges in pieces.items():
        if gauges:
            times = np.concatenate([gauge.times for gauge in gauges])
            values = np.concatenate([gauge.values for gauge in gauges]).astype(np.int64)
            order = np.argsort(times, kind="stable")
            found[process] = times[order], values[order]
    return found


def _join(
    times: NDArray[np.uint64],
    rows: tuple[NDArray[np.uint64], NDArray[np.int64]] | None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    seconds = (times // np.uint64(_NANOSECONDS)).astype(np.int64)
    if rows is None:
        return seconds, np.zeros(len(times), np.bool_)
    row_times, row_steps = rows
    at = np.minimum(np.searchsorted(row_times, times), len(row_times) - 1)
    stepped = row_times[at] == times
    return np.where(stepped, row_steps[at], seconds), stepped


def _closed(
    bounds: Sequence[float], counts: Sequence[int], low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges and counts of buckets with open ends, which are left out where they are empty; `low` and `high` are NaN if unknown."""
    if not len(bounds):
        low, high = (low, high) if low < high else (-1.0, 1.0)
        return np.array([low, high]), np.array(counts, np.float64)
    width = (bounds[-1] - bounds[0]) / len(bounds) or 1.0
    # As in Prometheus: without a minimum, a first bucket up to 0 holds zeros, not negative numbers.
    below = float(np.nextafter(0.0, -1.0)) if bounds[0] == 0 else bounds[0] - width
    edges, kept = list(bounds), list(counts)
    if len(edges) > 1 and not kept[0]:
        del kept[0]
    else:
        edges.insert(0, low if low < bounds[0] else below)
    if len(edges) > 1 and not kept[-1]:
        del kept[-1]
    else:
        edges.append(high if high > bounds[-1] else bounds[-1] + width)
    return np.array(edges), np.array(kept, np.float64)
