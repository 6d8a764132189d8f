"""Classes of response documents.

The server encodes responses from these classes. Together with `request_schemas`, they are the source of `openapi.json` and the
page's types. A field that is `UNSET` is omitted from the response.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

from tensormeter.server.store import State
from tensormeter.server.store.models.metric_kind import KindName

Attributes = Mapping[str, Any]
Float = float | Literal["NaN", "Infinity", "-Infinity"]
"""A number. NaN and infinities are strings, because JSON has neither."""

Nanoseconds = Annotated[str, Meta(pattern="^-?[0-9]+$", description="Nanoseconds since the Unix epoch.")]
"""An integer as a string, because JavaScript numbers are not precise enough."""

Temporality = Literal["delta", "cumulative", "unspecified"]

_NEXT_NAME: Final = Meta(description="Value of `after` for the next page; null on the last page.")

# Errors


class ErrorDetails(Struct):
    code: Annotated[str, Meta(description="Stable code for programs, such as `not_found`.")]
    message: Annotated[str, Meta(description="Human-readable explanation.")]


class Error(Struct):
    """The body of every error response."""

    error: ErrorDetails


# Projects and runs


class Project(Struct):
    """A project."""

    name: str
    runs: Annotated[int, Meta(description="Number of runs.")]
    last_time: Annotated[
        Nanoseconds, Meta(description="Time when the server last received data, by the server's clock.")
    ]


class Projects(Struct):
    """All projects."""

    projects: Sequence[Project]


class Summary(Struct, gc=False):
    """The value that represents a name, and statistics of the metric across all processes, attribute sets and attempts of a run.

    If the script wrote a value under a name that is no metric, there are no statistics.
    """

    value: Annotated[
        Any,
        Meta(
            description="Value that the script wrote to the summary, or else the statistic that the run's definitions select,"
            " by default `last`. Null if they select none."
        ),
    ]
    last: Annotated[Float | UnsetType, Meta(description="Value with the latest time.")] = UNSET
    min: Annotated[Float | UnsetType | None, Meta(description="Lowest value, ignoring NaN.")] = UNSET
    max: Annotated[Float | UnsetType | None, Meta(description="Highest value, ignoring NaN.")] = UNSET
    mean: Annotated[Float | UnsetType | None, Meta(description="Mean of the values, ignoring NaN.")] = UNSET
    count: Annotated[int | UnsetType, Meta(description="Number of points.")] = UNSET
    last_step: Annotated[int | UnsetType | None, Meta(description="Step at the time of the last value.")] = UNSET
    last_time: Nanoseconds | UnsetType = UNSET


class Definition(Struct, omit_defaults=True):
    """Presentation of metrics. If several definitions match a name, the last one that has a property decides it."""

    name: Annotated[str, Meta(description="Name of the metrics, or a pattern such as `eval/*`.")]
    summary: Annotated[
        Literal["last", "min", "max", "mean", "none"] | UnsetType,
        Meta(description="Statistic that represents the metrics."),
    ] = UNSET
    step_metric: Annotated[str | UnsetType, Meta(description="Metric that is the x axis of their charts.")] = UNSET


class Parent(Struct):
    """The run from which a run was forked."""

    run: Annotated[str, Meta(description="ID of the run, in the same project.")]
    step: Annotated[int, Meta(description="Last step of that run that belongs to the forked run.")]


class _RunFields(Struct, kw_only=True):
    id: str
    project: str
    name: str
    state: State
    attempt: Annotated[int, Meta(description="Number of the latest attempt, starting at 1.")]
    started: Annotated[
        Nanoseconds,
        Meta(description="Earliest start that a process reported; if none did, time of the earliest point or event."),
    ]
    ended: Annotated[Nanoseconds | None, Meta(description="Time when the run ended; null while it is running.")]
    last_time: Annotated[
        Nanoseconds, Meta(description="Time when the server last received data, by the server's clock.")
    ]
    group: str
    job_type: str
    tags: Sequence[str]
    notes: str
    archived: bool
    points: Annotated[int, Meta(description="Number of stored points.")]
    lost: Annotated[int, Meta(description="Number of points that the senders reported as dropped.")]
    lag: Annotated[
        float | None,
        Meta(description="Seconds from the newest point to `last_time`; null if there are no points."),
    ]
    config: Annotated[Attributes, Meta(description="Configuration of the run, as far as it was requested.")]
    summary: Annotated[
        Mapping[str, Summary],
        Meta(description="Values and statistics by name, as far as they were requested."),
    ]
    definitions: Annotated[Sequence[Definition], Meta(description="Definitions of metrics by the script, in order.")]
    parent: Annotated[Parent | None, Meta(description="Run from which this one was forked; null if it was not.")]


class Run(_RunFields, kw_only=True):
    """A run in a list of runs."""

    processes: Annotated[int, Meta(description="Number of processes.")]


class Process(Struct):
    """A process of a run."""

    id: str
    attempt: int
    rank: Annotated[Any, Meta(description="Rank as sent, normally an integer; null if there is none.")]
    host: Annotated[Any, Meta(description="Host name as sent, normally a string; null if there is none.")]
    state: State | None
    resource: Annotated[Attributes, Meta(description="Attributes of the OpenTelemetry resource.")]
    losses: Annotated[
        Mapping[str, int] | UnsetType,
        Meta(description="Number of points that the process dropped, by reason; omitted if there are none."),
    ] = UNSET


class RunDetails(_RunFields, kw_only=True):
    """A run with its processes."""

    processes: Sequence[Process]
    environment: Annotated[
        Attributes, Meta(description="Resource of the process with the lowest rank in the latest attempt.")
    ]
    losses: Annotated[Mapping[str, int], Meta(description="Number of dropped points by reason.")]
    results: Annotated[Attributes, Meta(description="Values that the script wrote to the summary, by name.")]


class Runs(Struct, kw_only=True):
    """A page of runs."""

    runs: Sequence[Run]
    total: Annotated[int, Meta(description="Number of matching runs on all pages.")]
    next: Annotated[int | None, Meta(description="Value of `offset` for the next page; null on the last page.")]
    damaged: Annotated[
        Sequence[str] | UnsetType,
        Meta(description="Runs that are missing because the store is damaged."),
    ] = UNSET


class HiddenPart(Struct):
    """Points of a metric that later attempts repeat, and that are therefore hidden."""

    metric: str
    attempt: Annotated[int, Meta(description="Attempt that logged the points.")]
    step: Annotated[int, Meta(description="First hidden step.")]


class Attempts(Struct):
    """The attempts of a run."""

    attempts: Annotated[Sequence[int], Meta(description="Numbers of the attempts, in ascending order.")]
    hidden: Annotated[Sequence[HiddenPart], Meta(description="Hidden parts, ordered by metric and attempt.")]
    next: Annotated[str | None, _NEXT_NAME]


class Attempt(Struct):
    """The attempt of a process."""

    attempt: Annotated[int, Meta(description="Number of the attempt, starting at 1.")]
    last_step: Annotated[
        int | None, Meta(description="Highest step that earlier attempts have reached; null if there is none.")
    ]


class Durable(Struct):
    """The latest commit, and the latest one on disk; all fields are null if the store does not report them."""

    epoch: Annotated[
        str | None,
        Meta(description="Random ID that changes each time the server starts; each epoch numbers its own commits."),
    ]
    committed: Annotated[int | None, Meta(description="Number of the latest commit.")]
    durable: Annotated[int | None, Meta(description="Number of the latest commit that survives a power failure.")]


# Metrics and events


class Metric(Struct, kw_only=True):
    """A metric, identified by its name, kind, temporality and unit."""

    name: str
    kind: KindName
    unit: str
    description: str
    temporality: Temporality | None
    monotonic: bool | None
    attributes: Annotated[Sequence[Attributes], Meta(description="Attribute sets of the series.")]
    points: Annotated[int, Meta(description="Number of points.")]
    processes: Annotated[int, Meta(description="Largest number of processes with the metric in one attempt.")]
    last: Annotated[Float | None, Meta(description="Latest value; null for distributions.")]
    last_step: Annotated[int | None, Meta(description="Step of the latest point.")]
    last_time: Nanoseconds | None
    scopes: Annotated[
        Sequence[str] | UnsetType,
        Meta(
            description="Names of the instrumentation scopes; omitted if all are empty, as for tensormeter's metrics."
        ),
    ] = UNSET
    stepped: Annotated[
        Literal[True] | UnsetType,
        Meta(description="Present if the latest point has no step but the latest point of another series has one."),
    ] = UNSET


class Metrics(Struct):
    """A page of the metrics of one or more runs, ordered by name."""

    metrics: Sequence[Metric]
    next: Annotated[str | None, _NEXT_NAME]
    total: Annotated[int, Meta(description="Number of matching names on all pages.")]


class Section(Struct, gc=False):
    """The metrics whose names have the same part before a slash."""

    name: Annotated[str, Meta(description="Part of the names after the prefix and before the next slash.")]
    metrics: Annotated[int, Meta(description="Number of matching names in the section.")]


class Sections(Struct):
    """A page of the sections at one level."""

    sections: Sequence[Section]
    metrics: Annotated[int, Meta(description="Number of matching names at this level that are in no section.")]
    next: Annotated[str | None, _NEXT_NAME]
    total: Annotated[int, Meta(description="Number of matching names at and below this level.")]


class Fields(Struct):
    """A page of the names of fields."""

    fields: Annotated[
        Sequence[str], Meta(description="Names as in filters: `config.` and a key, or `summary.` and a metric.")
    ]
    next: Annotated[str | None, _NEXT_NAME]
    total: Annotated[int, Meta(description="Number of matching names on all pages.")]


class EventScope(TypedDict, total=False):
    """An instrumentation scope."""

    name: str
    version: str
    attributes: Attributes


class Event(Struct):
    """An event: an OpenTelemetry log record. Fields that were not sent are 0, empty or null."""

    id: int
    time: Nanoseconds
    observed_time: Annotated[
        Nanoseconds | None, Meta(description="Time when the event was collected; null if it equals `time`.")
    ]
    name: str
    step: int | None
    process: str
    severity_number: Annotated[int, Meta(description="Severity, from 1 (TRACE) to 24 (FATAL4).")]
    severity_text: str
    trace_id: str
    span_id: str
    flags: int
    scope: EventScope
    attributes: Attributes
    body: Annotated[Any, Meta(description="Body; null if it is longer than `max_body`.")]
    size: Annotated[int, Meta(description="Length of the body as JSON, in characters.")]


class Events(Struct):
    """Events, newest first."""

    events: Sequence[Event]
    next: Annotated[str | None, Meta(description="Value of `before` for the next page; null on the last page.")]


class LogLine(Struct, kw_only=True):
    """A log line: an OpenTelemetry log record without an event name. Fields that were not sent are omitted."""

    RECORD: ClassVar = ("severity_text", "trace_id", "span_id", "flags", "scope", "json")
    """Fields that the store keeps together."""

    id: Annotated[str, Meta(description="Position of the line: its time and its number, in order of arrival.")]
    time: Nanoseconds
    process: str
    stream: Annotated[Literal["stdout", "stderr"] | None, Meta(description="Console stream; null if not printed.")]
    severity: Annotated[int, Meta(description="Severity, from 1 (TRACE) to 24 (FATAL4); 0 if there is none.")]
    text: Annotated[str, Meta(description="The line, truncated to `max_text` characters.")]
    size: Annotated[
        int | UnsetType, Meta(description="Length of the whole text in characters; present if it is truncated.")
    ] = UNSET
    json: Annotated[
        Literal[True] | UnsetType, Meta(description="Present if the body was no string; `text` is then its JSON.")
    ] = UNSET
    severity_text: str | UnsetType = UNSET
    observed_time: Annotated[
        Nanoseconds | UnsetType, Meta(description="Time when the line was collected, if it differs from `time`.")
    ] = UNSET
    scope: EventScope | UnsetType = UNSET
    attributes: Attributes | UnsetType = UNSET
    trace_id: str | UnsetType = UNSET
    span_id: str | UnsetType = UNSET
    flags: int | UnsetType = UNSET


class LogUsage(Struct):
    """The log lines that the server keeps for a run."""

    lines: Annotated[int, Meta(description="Number of lines.")]
    size: Annotated[int, Meta(description="Bytes of texts and attributes.")]
    evicted: Annotated[
        int, Meta(description="Number of the oldest lines that were deleted, because there were too many.")
    ]


class Logs(Struct, kw_only=True):
    """A page of log lines, oldest first; with `since`, in order of arrival."""

    lines: Sequence[LogLine]
    older: Annotated[str | None, Meta(description="Value of `before` for older lines; null if there are none.")]
    newer: Annotated[str | None, Meta(description="Value of `after` for newer lines; null at the newest line.")]
    cursor: Annotated[str, Meta(description="Value of `since` for lines that arrive later.")]
    usage: LogUsage
    stopped: Annotated[
        Literal[True] | UnsetType,
        Meta(description="Present if the time limit of the search ended it; `older` or `newer` continues it."),
    ] = UNSET
    more: Annotated[
        Literal[True] | UnsetType, Meta(description="Present if more lines had arrived after `cursor`.")
    ] = UNSET
    reset: Annotated[
        Literal[True] | UnsetType,
        Meta(description="Present if the server does not know `since`; the page then has the newest lines."),
    ] = UNSET
    damaged: Annotated[
        int | UnsetType, Meta(description="Number of lines that are missing because the store is damaged.")
    ] = UNSET


# Points


class ArrayPlace(Struct, gc=False):
    """The position of an array in a binary response."""

    offset: Annotated[int, Meta(description="Offset from the start of the response, in bytes; a multiple of 8.")]
    length: Annotated[int, Meta(description="Number of elements.")]
    type: Annotated[Literal["f64", "i64", "u8"], Meta(description="Type of the elements, little-endian.")]


class SampledHeader(Struct, kw_only=True):
    """The description of a sampled series, without its points."""

    run: str
    process: str
    attempt: int
    metric: str
    kind: KindName
    temporality: Temporality | None
    monotonic: bool | None
    scope: str
    unit: str
    attributes: Attributes
    total: Annotated[int, Meta(description="Number of points in the range before sampling.")]
    child: Annotated[
        str | UnsetType,
        Meta(description="ID of the requested run that was forked from `run`; omitted for requested runs."),
    ] = UNSET


class SampledSeries(SampledHeader, kw_only=True):
    """A sampled series."""

    x: Sequence[Float]
    y: Sequence[Float]
    gaps: Annotated[Sequence[Float] | UnsetType, Meta(description="x of the last point before each gap.")] = UNSET


class SampledArrays(SampledHeader, kw_only=True):
    """A sampled series in a binary response."""

    x: ArrayPlace
    y: ArrayPlace
    gaps: ArrayPlace | UnsetType = UNSET


class QueryFooter(Struct, kw_only=True):
    """The result of a query without its series."""

    cursor: Annotated[str, Meta(description="State of the store, to pass as `after` in a later query.")]
    reset: Annotated[bool, Meta(description="True if `series` contains all points, although `after` was given.")]
    damaged: Annotated[
        Sequence[str] | UnsetType,
        Meta(description="Data that is missing because the store is damaged."),
    ] = UNSET


class QueryResult(QueryFooter, kw_only=True):
    """Sampled series of the requested runs."""

    series: Sequence[SampledSeries]


class QueryColumns(QueryFooter, kw_only=True):
    """The header of a binary response to a query."""

    series: Sequence[SampledArrays]


class FullHeader(Struct, kw_only=True):
    """The description of a full series, without its points.

    `metric` is present only in the response to a request for several metrics. In the JSON response for one metric,
    `temporality`, `monotonic`, `scope` and `unit` are present only if the series differ in kind, scope or unit.
    """

    metric: str | UnsetType = UNSET
    process: str
    attempt: int
    kind: KindName
    temporality: Temporality | UnsetType | None = UNSET
    monotonic: bool | UnsetType | None = UNSET
    scope: str | UnsetType = UNSET
    unit: str | UnsetType = UNSET
    attributes: Attributes


class FullSeries(FullHeader, kw_only=True):
    """Every point of a series."""

    time: Annotated[Sequence[int], Meta(description="Nanoseconds since the Unix epoch.")]
    step: Sequence[int | None]
    value: Sequence[Float]
    gaps: Annotated[
        Sequence[int] | UnsetType, Meta(description="Times of gaps, in nanoseconds since the Unix epoch.")
    ] = UNSET


class FullArrays(FullHeader, kw_only=True):
    """Every point of a series, in a binary response."""

    time: ArrayPlace
    step: ArrayPlace
    value: Annotated[ArrayPlace, Meta(description="Bits of float64 values, or int64 values where `integers` is 1.")]
    stepped: Annotated[
        ArrayPlace | UnsetType, Meta(description="0 where a point has no step. If absent, all points have one.")
    ] = UNSET
    integers: Annotated[
        ArrayPlace | UnsetType, Meta(description="1 where a value is an integer. If absent, no value is an integer.")
    ] = UNSET
    gaps: ArrayPlace | UnsetType = UNSET


class MetricSeriesHeader(Struct):
    """The header of a response that contains every point of a metric."""

    metric: str
    x: Literal["step", "time"]


class MetricSeries(MetricSeriesHeader):
    """Every point of a metric."""

    series: Sequence[FullSeries]


class MetricColumns(MetricSeriesHeader):
    """The header of a binary response that contains every point of a metric."""

    series: Sequence[FullArrays]


class ManySeriesHeader(Struct):
    """The header of a response that contains every point of several metrics."""

    x: Literal["step", "time"]


class ManySeries(ManySeriesHeader):
    """Every point of several metrics."""

    series: Sequence[FullSeries]


class ManyColumns(ManySeriesHeader):
    """The header of a binary response that contains every point of several metrics."""

    series: Sequence[FullArrays]


# Statistics and distributions


class Variant(Struct):
    """One of several metrics of the same name."""

    kind: KindName
    temporality: Temporality | None
    scope: str
    unit: str


class Ranks(Struct):
    """Statistics of a metric across the processes of a run; all lists have one entry for each x."""

    x: Sequence[Float]
    min: Sequence[Float]
    median: Sequence[Float]
    max: Sequence[Float]
    lowest: Annotated[Sequence[str], Meta(description="IDs of the processes with the lowest value.")]
    highest: Annotated[Sequence[str], Meta(description="IDs of the processes with the highest value.")]
    processes: Annotated[int, Meta(description="Number of processes.")]
    variant: Annotated[Variant | None, Meta(description="Variant of the metric that the statistics describe.")]
    others: Annotated[Sequence[Variant], Meta(description="Other variants of the metric.")]


class Distribution(Struct, kw_only=True, gc=False):
    """A distribution. Bucket i is (bounds[i - 1], bounds[i]]; the first and last buckets are unbounded."""

    count: int
    sum: Float | None
    min: Float | None
    max: Float | None
    bounds: Sequence[Float]
    counts: Annotated[
        Sequence[int],
        Meta(
            description="Number of values in each bucket: one more entry than `bounds`, or empty if there are no buckets."
        ),
    ]
    quantiles: Annotated[
        Sequence[tuple[Float, Float]] | UnsetType,
        Meta(description="Pairs of quantile and value; only summaries have them."),
    ] = UNSET


class HistogramPoint(Distribution, kw_only=True, gc=False):
    """A distribution and its x value."""

    x: Float


class Histograms(Struct, kw_only=True):
    """Distributions of one series. If no series matches, there are no points, and the optional fields are omitted."""

    points: Sequence[HistogramPoint]
    total: Annotated[int, Meta(description="Number of distributions in the range before sampling.")]
    process: str | UnsetType = UNSET
    kind: KindName | UnsetType = UNSET
    temporality: Temporality | UnsetType | None = UNSET
    monotonic: bool | UnsetType | None = UNSET
    scope: str | UnsetType = UNSET
    unit: str | UnsetType = UNSET
    attributes: Attributes | UnsetType = UNSET


class ExponentialBuckets(Struct, gc=False):
    """Buckets of one sign of an exponential histogram."""

    offset: Annotated[int, Meta(description="Index of the first bucket.")]
    counts: Annotated[Sequence[int], Meta(description="Number of values in each bucket.")]


class Exponential(Struct, gc=False):
    """Buckets of an exponential histogram. Bucket i is (b^i, b^(i + 1)] with b = 2^(2^-scale)."""

    scale: int
    zero_count: Annotated[int, Meta(description="Number of values in the bucket of zero.")]
    zero_threshold: Annotated[Float, Meta(description="Largest absolute value in the bucket of zero.")]
    positive: ExponentialBuckets
    negative: Annotated[ExponentialBuckets, Meta(description="Buckets of the absolute values of negative numbers.")]


class DistributionPoint(Distribution, kw_only=True, gc=False):
    """A distribution as it was logged."""

    time: Annotated[int, Meta(description="Nanoseconds since the Unix epoch.")]
    step: int | None
    start_time: Annotated[
        int | UnsetType,
        Meta(description="Start of the period that the distribution covers, if it was sent; only with `exact`."),
    ] = UNSET
    exponential: Annotated[
        Exponential | UnsetType, Meta(description="Buckets of an exponential histogram; only with `exact`.")
    ] = UNSET


class DistributionHeader(Struct):
    """The description of a series of distributions, without its points."""

    process: str
    attempt: int
    kind: KindName
    temporality: Temporality | None
    monotonic: bool | None
    scope: str
    unit: str
    attributes: Attributes


class DistributionSeries(DistributionHeader):
    """Every distribution of a series."""

    points: Sequence[DistributionPoint]


class Distributions(Struct):
    """Every distribution of a metric."""

    metric: str
    series: Sequence[DistributionSeries]


# Live updates


class Update(Struct):
    """The data of an `update` event in the stream: changes to one run."""

    run: str
    metrics: Annotated[
        Sequence[str],
        Meta(description="Names of the metrics that have new points; empty if there are too many to list."),
    ]
    many: Annotated[
        Literal[True] | UnsetType,
        Meta(description="Present if too many metrics have new points to list them; any metric may have new points."),
    ] = UNSET
    state: Annotated[State | UnsetType, Meta(description="State of the run, if it changed.")] = UNSET
    events: Annotated[Literal[True] | UnsetType, Meta(description="Present if there are new events.")] = UNSET
    logs: Annotated[Literal[True] | UnsetType, Meta(description="Present if there are new log lines.")] = UNSET


class Cursor(Struct):
    """The data of a `cursor` event in the stream."""

    cursor: Annotated[str, Meta(description="State of the store, to pass as `after` in a later query or stream.")]
