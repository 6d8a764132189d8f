"""Decoder for destinations that do not use OTLP. It converts requests to events and to series with steps.

The step of a point is the value of the gauge `tensormeter.step` from the same process at the same time. Points and
steps are joined as in the server. Rows are never split across requests, so each row's gauge is in the same request.
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
    "ProcessRef",
    "RunEvent",
    "Scalars",
    "SteppedSeries",
    "bucket_edges",
    "flatten",
    "read_events",
    "read_metrics",
    "scalars",
]

_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True)
class ProcessRef:
    """Reference to the process that sent the data of a request.

    Attributes:
        project: Project of the run, from `service.name`.
        run: ID of the run.
        name: Display name of the run.
        process: ID of the process, from `service.instance.id`.
    """

    project: str
    run: str
    name: str
    process: str

    @classmethod
    def of(cls, resource: Mapping[str, Attribute]) -> "ProcessRef":
        """Create a reference from a resource. In data from other software, each service instance counts as a run."""
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
    """A series with the step of each point.

    Attributes:
        sender: Process that sent the data.
        series: Points of the series.
        steps: Step of each point, int64, shape (n,). Points without a step, such as those of sensors, have the Unix
            time in seconds instead, which stays the same when a request is retried.
        stepped: Whether each point has a step, bool, shape (n,).
    """

    sender: ProcessRef
    series: Series
    steps: NDArray[np.int64]
    stepped: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """Name of the metric, followed by its attributes if it has any: `hw.power{hw.id=GPU-0}`."""
        attributes = self.series.attributes
        pairs = ",".join(f"{key}={attributes[key]}" for key in sorted(attributes))
        return f"{self.series.name}{{{pairs}}}" if pairs else self.series.name

    @property
    def identity(self) -> str:
        """Identifier of the series within its process; the plain name if that is sufficient."""
        series = self.series
        scope = [] if series.scope.name in ("", SCOPE.name) else [series.scope.name, series.scope.version]
        if not series.attributes and not scope:
            return series.name
        return repr([series.name, sorted((key, repr(value)) for key, value in series.attributes.items()), *scope])


@dataclass(frozen=True)
class RunEvent:
    """An event that a process sent.

    Attributes:
        sender: Process that sent the data.
        event: Decoded event.
        media: Table, image, text or alert in the event; None if there is none.
        step: Step of the media; None if it has no step.
        error: Reason why the media cannot be read, or "".
    """

    sender: ProcessRef
    event: Event
    media: Media | None = None
    step: int | None = None
    error: str = ""

    @property
    def axis_step(self) -> int:
        """Step, or the Unix time in seconds if there is no step, as in `SteppedSeries.steps`."""
        return self.event.time // _NANOSECONDS if self.step is None else self.step

    @property
    def body(self) -> Mapping[str, Value]:
        """Body of the event if it is a mapping; otherwise an empty mapping."""
        return self.event.body if isinstance(self.event.body, Mapping) else {}


@dataclass(frozen=True)
class Scalars:
    """Plain numbers derived from a series.

    Attributes:
        name: Name of the series, with a suffix such as `/mean` if its points are not numbers.
        values: Numbers, float64 or int64, shape (n,).
        part: Suffix of the name, such as `/mean`, or "".
        statistic: Whether the numbers are statistics, in which NaN means a missing value.
    """

    name: str
    values: NDArray[np.float64] | NDArray[np.int64]
    part: str = ""
    statistic: bool = False

    @property
    def present(self) -> NDArray[np.bool_]:
        """Mask of the points that have a value, shape (n,)."""
        return ~np.isnan(self.values) if self.statistic else np.ones(len(self.values), np.bool_)


def read_metrics(request: Request) -> list[SteppedSeries]:
    """Return all series of a metrics request, except the step gauge itself.

    Raises:
        EncodingError: The body cannot be decoded. Nothing else is raised.
    """
    body = decompress(request)
    with decoding(request):
        batches = decode_metrics(body)
        steps = _steps(batches)
        return [
            SteppedSeries(sender, series, *_join(series.times, steps.get(sender.process)))
            for batch in batches
            for sender in [ProcessRef.of(batch.resource)]
            for series in batch.series
            if series.name != STEP_METRIC
        ]


def read_events(request: Request) -> list[RunEvent]:
    """Return all events of a logs request. Log records without an event name, such as console output, are left out.

    Raises:
        EncodingError: The body cannot be decoded. Nothing else is raised.
    """
    run_events = []
    body = decompress(request)
    with decoding(request):
        for resource, events in decode_events(body):
            sender = ProcessRef.of(resource)
            for event in events:
                if not event.name:
                    continue
                try:
                    media, step = media_of(event) or (None, None)
                    run_events.append(RunEvent(sender, event, media, step))
                except Exception as error:  # any exception, so that only this event is lost
                    run_events.append(RunEvent(sender, event, error=f"{event.name}: {error}"))
    return run_events


def scalars(stepped: SteppedSeries) -> Iterator[Scalars]:
    """Yield a series as plain numbers: the points themselves, or statistics if they are not numbers."""
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
    """Return one distribution as finite, increasing edges of shape (k + 1,), and counts of shape (k,).

    Open-ended buckets extend to the minimum and maximum. If these are unknown, an open-ended bucket is as wide as the
    average bucket. Empty open-ended buckets are omitted. Zeros of exponential histograms have a separate bucket; see
    `explicit_buckets`.
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
    """Flatten nested mappings, and join their keys with dots.

    If a key already contains dots and equals a joined key, as in `{"a.b": 1, "a": {"b": 2}}`, it gets a suffix.
    """
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
    """Return the times and steps of each process's rows, ordered by time."""
    pieces: dict[str, list[Gauge]] = {}
    for batch in batches:
        process = ProcessRef.of(batch.resource).process
        pieces.setdefault(process, []).extend(gauge for gauge in batch.gauges if gauge.name == STEP_METRIC)
    steps = {}
    for process, gauges in pieces.items():
        if gauges:
            times = np.concatenate([gauge.times for gauge in gauges])
            values = np.concatenate([gauge.values for gauge in gauges]).astype(np.int64)
            order = np.argsort(times, kind="stable")
            steps[process] = times[order], values[order]
    return steps


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
    """Replace the infinite ends of the outer buckets with finite edges, and return the edges and counts.

    `low` and `high` are the minimum and maximum, or NaN if they are unknown.
    """
    if not len(bounds):
        low, high = (low, high) if low < high else (-1.0, 1.0)
        return np.array([low, high]), np.array(counts, np.float64)
    width = (bounds[-1] - bounds[0]) / len(bounds) or 1.0
    # As in Prometheus, if the minimum is unknown, a first bucket that ends at 0 is assumed to contain zeros.
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
