"""The `StoredRun` object, which represents a run on the server."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from tensormeter.client.blocks import Block, BlockReader
from tensormeter.client.code_records import RecordedArtifact, RecordedCode
from tensormeter.client.connection import Connection
from tensormeter.client.distributions import BLOCK_DISTRIBUTIONS, DistributionBlock, distribution_reader
from tensormeter.client.histograms import Histograms
from tensormeter.client.logs import LogLines, severity_number
from tensormeter.client.points import BLOCK_POINTS, PointBlock, point_reader, read_many
from tensormeter.client.records import (
    Record,
    RecordedImage,
    RecordedMedia,
    RecordedTable,
    RecordedText,
    image_bodies,
    merge_repeats,
)
from tensormeter.client.series import SeriesList, query_series
from tensormeter.conventions.semconv import (
    ALERT_EVENT,
    ARTIFACT_EVENT,
    AUDIO_EVENT,
    FIGURE_EVENT,
    HTML_EVENT,
    IMAGE_EVENT,
    IMAGES_EVENT,
    RUN_CODE,
    TABLE_EVENT,
    TEXT_EVENT,
    VIDEO_EVENT,
)
from tensormeter.errors import UsageError

__all__ = ["METRICS_PAGE", "Metric", "Process", "StoredRun", "Summary"]

M = TypeVar("M", bound=RecordedMedia)

METRICS_PAGE: Final = 5000
"""Number of metric names per request."""


@dataclass(frozen=True)
class Summary:
    """The value that represents a name in the summary of a run, and the statistics of the metric over all processes.

    Attributes:
        value: Value that the script wrote to the summary, or else the statistic that the run's definitions select, by default
            the latest value; None if they select none.
        last: Latest value; None if the name is no metric.
        min: Lowest value; None if all values are NaN, or if series of the metric differ in unit or kind.
        max: Highest value; None in the same cases.
        mean: Mean value; None in the same cases.
        count: Number of points; 0 if the name is no metric.
        last_step: Step of the latest value; None if that value has no step.
        last_time: Time of the latest value, in nanoseconds since the Unix epoch; None if the name is no metric.
    """

    value: Any
    last: int | float | None = None
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    count: int = 0
    last_step: int | None = None
    last_time: int | None = None


@dataclass(frozen=True)
class Process:
    """A process of a run, in one attempt.

    Attributes:
        id: ID of the process.
        attempt: Number of the attempt, from 1.
        rank: Rank of the process; None if unknown.
        host: Host name of the process; None if unknown.
        state: State of the process, such as "running" or "finished"; None if it has reported neither its start nor its
            end.
        resource: OpenTelemetry resource attributes.
    """

    id: str
    attempt: int
    rank: int | None
    host: str | None
    state: str | None
    resource: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Metric:
    """A metric of a run over all processes. Metrics with the same name but a different unit or kind are separate.

    Attributes:
        name: Name of the metric.
        kind: "gauge", "sum", "histogram", "exponential_histogram" or "summary".
        unit: UCUM unit; "" if there is none.
        description: Description of the metric; "" if there is none.
        temporality: "delta" or "cumulative"; "unspecified" if the sender did not specify it; None for gauges and
            summaries.
        monotonic: Whether the sum never decreases; None if the metric is not a sum.
        attributes: Attribute sets of the series.
        points: Number of points from all processes.
        processes: Largest number of processes that have the metric in one attempt.
        last: Latest value; None for distributions.
        last_step: Step of the latest point; None if that point has no step.
        last_time: Time of the latest point, in nanoseconds since the Unix epoch; None if there are no points.
        scopes: Names of the instrumentation scopes that record the metric; "" for tensormeter itself.
    """

    name: str
    kind: str
    unit: str
    description: str
    temporality: str | None
    monotonic: bool | None
    attributes: Sequence[Mapping[str, Any]]
    points: int
    processes: int
    last: int | float | None
    last_step: int | None
    last_time: int | None
    scopes: Sequence[str] = ("",)

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers, not distributions."""
        return self.kind in ("gauge", "sum")


class StoredRun:
    """A run on the server.

    The attributes are a snapshot, which `refresh` updates. Each method sends requests and blocks until the server
    responds. It raises `TensormeterError` if the server does not respond or returns an error. Times are in nanoseconds
    since the Unix epoch.

    Attributes:
        id: ID of the run, unique within its project.
        project: Name of the run's project.
        name: Display name.
        state: "running", "finished", "failed", "crashed", "preempted" or "stalled".
        attempt: Number of the latest attempt, from 1.
        started: Earliest start that a process of the run reported; if none did, time of the earliest point or event.
        ended: Time when the run ended; None while it is in progress.
        last_time: Time when the server last received data of the run, by the server's clock.
        group: Name of the run's group; "" for none.
        tags: Tags of the run.
        notes: Notes about the run.
        archived: Whether the run is hidden from lists.
        points_stored: Number of points on the server, including those that record steps.
        lost: Number of points that the run's senders have dropped so far.
        lag: Seconds between the newest point and `last_time`; None if there are no points.
        definitions: How the script defined its metrics: mappings with `name`, `summary` and `step_metric`.
        parent: Run and step from which the run was forked, as `{"run": ID, "step": N}`; None if it was not forked.
        config: Configuration as JSON values, limited to the `fields` passed to `Client.runs`. NaN and infinities are
            the strings "NaN", "Infinity" and "-Infinity".
    """

    def __init__(self, connection: Connection, document: Mapping[str, Any], *, has_summary: bool = False) -> None:
        """Create a run from an API document. Use `Client.run` or `Client.runs` instead.

        Args:
            connection: Connection to the server.
            document: The run as JSON values.
            has_summary: Whether the document contains the summaries that were asked for. Otherwise, they are read later.
        """
        self._connection = connection
        self._load(document, has_summary=has_summary)

    def _load(self, document: Mapping[str, Any], *, has_summary: bool = False) -> None:
        self.id: str = document["id"]
        self.project: str = document["project"]
        self.name: str = document["name"]
        self.state: str = document["state"]
        self.attempt: int = document["attempt"]
        self.started = int(document["started"])
        self.ended = None if document["ended"] is None else int(document["ended"])
        self.last_time = int(document["last_time"])
        self.group: str = document["group"]
        self.tags: Sequence[str] = document["tags"]
        self.notes: str = document["notes"]
        self.archived: bool = document["archived"]
        self.points_stored: int = document["points"]
        self.lost: int = document["lost"]
        self.lag: float | None = document["lag"]
        self.definitions: Sequence[Mapping[str, str]] = document.get("definitions", ())
        self.parent: Mapping[str, Any] | None = document.get("parent")
        self.config: Mapping[str, Any] = document["config"]
        self._summary = _summaries(document) if has_summary else None

    @property
    def summary(self) -> Mapping[str, Summary]:
        """Summary of each metric, limited to the `fields` passed to `Client.runs`.

        Without `fields`, the first use reads the summaries of all metrics and blocks meanwhile. This takes seconds for
        a run with hundreds of thousands of metrics; `series`, `metrics` and `points_of` need no summary.

        Raises:
            TensormeterError: The server does not respond or returns an error.
        """
        if self._summary is None:
            self._summary = _summaries(self._connection.get("runs", self.id, project=self.project, fields="summary"))
        return self._summary

    def __repr__(self) -> str:
        return f"StoredRun({self.project!r}, {self.id!r}, name={self.name!r}, state={self.state!r})"

    def refresh(self) -> "StoredRun":
        """Update the attributes, with the complete configuration, and return this run.

        The summary is read again when it is next used.
        """
        self._load(self._connection.get("runs", self.id, project=self.project, fields="config"))
        return self

    def update(
        self,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        group: str | None = None,
        archived: bool | None = None,
    ) -> "StoredRun":
        """Edit the run, and return it. Data that arrives later does not overwrite the edits.

        Arguments that are None change nothing.

        Args:
            name: Display name.
            tags: Tags, which replace the current ones.
            notes: Notes about the run.
            group: Name of the run's group; "" for none.
            archived: Whether to hide the run from lists.
        """
        fields = {"name": name, "tags": tags, "notes": notes, "group": group, "archived": archived}
        changes = {key: value for key, value in fields.items() if value is not None}
        self._load(
            self._connection.send("PATCH", "runs", self.id, document=changes, project=self.project, fields="config")
        )
        return self

    def processes(self) -> list[Process]:
        """Return the run's processes, in the order in which the server first received data from them."""
        documents = self._connection.get("runs", self.id, project=self.project, fields="")["processes"]
        return [Process(**{key: document[key] for key in Process.__dataclass_fields__}) for document in documents]

    def metrics(self, prefix: str = "", search: str = "") -> list[Metric]:
        """Return the run's metrics, sorted by name. Metrics that differ in kind or unit may have the same name.

        Args:
            prefix: Beginning of the names. Default: all names.
            search: Regular expression in RE2 syntax that the names contain; case is ignored. Default: all names.
        """
        return list(self.iterate_metrics(prefix, search))

    def iterate_metrics(self, prefix: str = "", search: str = "") -> Iterator[Metric]:
        """Iterate over the run's metrics, reading them page by page. See `metrics` for the arguments."""
        after: str | None = None
        while True:
            page = self._connection.get(
                "runs", self.id, "metrics",
                project=self.project, prefix=prefix, search=search, limit=METRICS_PAGE, after=after,
            )  # fmt: skip
            for document in page["metrics"]:
                yield _metric(document)
            after = page["next"]
            if after is None:
                return

    def series(
        self,
        *metrics: str,
        x: str = "step",
        start: float | None = None,
        stop: float | None = None,
        max_points: int = 0,
        process: str | None = None,
        attempt: int | Literal["all"] | None = None,
        attributes: Mapping[str, Any] | None = None,
        scope: str | None = None,
        unit: str | None = None,
    ) -> SeriesList:
        """Read points as float64 arrays.

        Args:
            metrics: Names of gauges and sums.
            x: X axis: "step", "time" (seconds since the Unix epoch), "relative" (seconds since `started`) or
                "metric:NAME".
            start: Start of the x range. Default: no limit.
            stop: Exclusive end of the x range. Default: no limit.
            max_points: Maximum number of points per series: at least 4, or 0 for all points. Sampling preserves the
                lowest and highest points.
            process: ID of a process. Default: all processes.
            attempt: Number of an attempt, or "all". Default: all attempts, without points that a later attempt repeated.
            attributes: Attributes that the series must have; the series may have others too. Default: all series.
            scope: Name of an instrumentation scope. Default: all scopes.
            unit: Unit. Default: all units.

        Raises:
            UsageError: No metric is given.
        """
        if not metrics:
            raise UsageError("series: expected at least one metric name; list the names with `metrics()`")
        return query_series(
            self._connection, [(self.project, self.id)], list(dict.fromkeys(metrics)),
            x=x, start=start, stop=stop, max_points=max_points, process=process, attempt=attempt,
            attributes=attributes, scope=scope, unit=unit,
        )  # fmt: skip

    def points(
        self,
        metric: str,
        *,
        process: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        block: int = BLOCK_POINTS,
    ) -> Iterator[PointBlock]:
        """Iterate in bounded memory over all points of a gauge or sum, exactly as they were logged.

        Each block contains points of one series. Blocks cover all attempts and are ordered by process, then by time.

        Args:
            metric: Name of the metric.
            process: ID of a process. Default: all processes.
            start: Start of the time range, in nanoseconds since the Unix epoch. Default: no limit.
            stop: Exclusive end of the time range, in nanoseconds since the Unix epoch. Default: just after the latest
                point that the server has when the iteration starts.
            block: Maximum number of points that the server reads per request, unless a single segment has more.
        """
        reader = point_reader(self._connection, (self.project, self.id), metric, block)
        yield from self._blocks(reader, metric, process, start, stop)

    def points_of(self, metrics: Iterable[Metric], *, block: int = BLOCK_POINTS) -> Iterator[PointBlock]:
        """Iterate in bounded memory over all points of several metrics, with few requests.

        The blocks are those that `points` returns for each name. Metrics with few points are requested together. Points
        that arrived after `metrics` was read may be missing.

        Args:
            metrics: Gauges and sums of this run, from `metrics`. Metrics with the same name count as one.
            block: Maximum number of points that the server reads per request; see `points`.
        """
        totals: dict[str, tuple[int, int]] = {}
        for metric in metrics:
            points, stop = totals.get(metric.name, (0, 1))
            totals[metric.name] = points + metric.points, max(stop, (metric.last_time or 0) + 1)

        def read_one(name: str, stop: int) -> Iterator[PointBlock]:
            return self.points(name, stop=stop, block=block)

        return read_many(self._connection, (self.project, self.id), totals, read_one, block)

    def histograms(
        self,
        metric: str,
        *,
        x: str = "step",
        start: float | None = None,
        stop: float | None = None,
        max_points: int = 200,
        process: str | None = None,
        attempt: int | Literal["all"] | None = None,
        attributes: Mapping[str, Any] | None = None,
        scope: str | None = None,
        unit: str | None = None,
    ) -> Histograms:
        """Read the distributions of the first matching series of a metric.

        Args:
            metric: Name of the metric.
            x: X axis; see `series`.
            start: Start of the x range. Default: no limit.
            stop: Exclusive end of the x range. Default: no limit.
            max_points: Maximum number of distributions, 2 to 2,000. If there are more, the result contains the first,
                the last, and evenly spaced distributions between them.
            process: ID of a process. Default: any process.
            attempt: Number of an attempt, or "all". Default: all attempts, without distributions that a later attempt
                repeated.
            attributes: Attributes that the series must have. Default: any attributes.
            scope: Name of an instrumentation scope. Default: any scope.
            unit: Unit. Default: any unit.
        """
        attributes_json = None if attributes is None else json.dumps(dict(attributes))
        document = self._connection.get(
            "runs", self.id, "histograms",
            project=self.project, metric=metric, x=x, start=start, stop=stop, max_points=max_points, process=process,
            attempt=attempt, attributes=attributes_json, scope=scope, unit=unit,
        )  # fmt: skip
        return Histograms.of(document)

    def distributions(
        self,
        metric: str,
        *,
        process: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        block: int = BLOCK_DISTRIBUTIONS,
    ) -> Iterator[DistributionBlock]:
        """Iterate in bounded memory over all distributions of a metric, as they were logged.

        Blocks cover all attempts and are ordered as in `points`. Exponential histograms have bounds and counts like
        other histograms. If an exponential histogram has more than 640 buckets, adjacent buckets are merged.

        Args:
            metric: Name of the metric.
            process: ID of a process. Default: all processes.
            start: Start of the time range, in nanoseconds since the Unix epoch. Default: no limit.
            stop: Exclusive end of the time range, in nanoseconds since the Unix epoch. Default: just after the latest
                distribution that the server has when the iteration starts.
            block: Maximum number of distributions that the server reads per request, unless a single segment has more.
        """
        reader = distribution_reader(self._connection, (self.project, self.id), metric, block)
        yield from self._blocks(reader, metric, process, start, stop)

    def events(self, name: str | None = None, key: str | None = None, limit: int = 1000) -> list[Record]:
        """Read events (log records), newest first.

        Args:
            name: Name of the events. A trailing `*` matches any ending. Default: all names.
            key: Key under which the events were logged. Default: all keys.
            limit: Maximum number of events, up to 10,000.
        """
        return [Record(**Record.fields_of(event)) for event in self._events(name, key, limit)]

    def logs(
        self,
        search: str = "",
        *,
        pattern: str | None = None,
        severity: str | int = 0,
        rank: int | None = None,
        process: str | None = None,
        stream: Literal["stdout", "stderr"] | None = None,
        start: int | None = None,
        stop: int | None = None,
        tail: int | None = None,
    ) -> LogLines:
        """Return the lines of the run's log: console output and records of logging libraries, of all attempts.

        Iterate over the result, call its `to_pandas`, or `follow` the lines of a run that is in progress.

        Args:
            search: Text that the lines contain. The case of ASCII letters is ignored. Default: all lines.
            pattern: Regular expression that the lines contain, as of Python's `re` with `re.ASCII`. The client applies it to
                all lines that it reads; some patterns need the package `google-re2` to be fast. Default: all lines.
            severity: Lowest severity: "TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL" or an OTLP number. Lines
                without a severity have the lowest one.
            rank: Rank of the process. Default: all processes.
            process: ID of a process. Default: all processes.
            stream: Console stream. Default: all lines, including those that were not printed.
            start: Start of the time range, in nanoseconds since the Unix epoch. Default: no limit.
            stop: Exclusive end of the time range, in nanoseconds since the Unix epoch. Default: no limit.
            tail: Number of lines, the newest ones. Default: all lines.
        """
        query: dict[str, str | float | None] = {
            "search": search, "severity": severity_number(severity), "rank": rank, "process": process, "stream": stream,
            "start": start, "stop": stop,
        }  # fmt: skip
        return LogLines(self._connection, (self.project, self.id), query, pattern=pattern, tail=tail)

    def alerts(self, limit: int = 1000) -> list[Record]:
        """Read the alerts that the training script and the server raised, newest first. The maximum `limit` is 10,000."""
        return self.events(ALERT_EVENT, limit=limit)

    def texts(self, key: str | None = None, limit: int = 1000) -> list[RecordedText]:
        """Read texts, newest first. A repeated short text is returned once. See `events` for the arguments."""
        return merge_repeats(RecordedText(**Record.fields_of(event)) for event in self._events(TEXT_EVENT, key, limit))

    def tables(self, key: str | None = None, limit: int = 1000) -> list[RecordedTable]:
        """Read tables, newest first. See `events` for the arguments."""
        return [RecordedTable(**Record.fields_of(event)) for event in self._events(TABLE_EVENT, key, limit)]

    def images(self, key: str | None = None, limit: int = 1000) -> list[RecordedImage]:
        """Read images, newest first; `RecordedImage.read` downloads one. See `events` for the arguments.

        Images that were logged as a list or a batch follow each other in their order.
        """
        images = []
        for event in self._events(f"{IMAGE_EVENT}*", key, limit):
            bodies = image_bodies(event["body"]) if event["name"] == IMAGES_EVENT else [event["body"]]
            images += [self._media(RecordedImage, event | {"body": body}) for body in bodies]
        return images

    def videos(self, key: str | None = None, limit: int = 1000) -> list[RecordedMedia]:
        """Read videos, newest first; `RecordedMedia.read` downloads one. See `events` for the arguments."""
        return [self._media(RecordedMedia, event) for event in self._events(VIDEO_EVENT, key, limit)]

    def audio(self, key: str | None = None, limit: int = 1000) -> list[RecordedMedia]:
        """Read audio clips, newest first; `RecordedMedia.read` downloads one. See `events` for the arguments."""
        return [self._media(RecordedMedia, event) for event in self._events(AUDIO_EVENT, key, limit)]

    def html(self, key: str | None = None, limit: int = 1000) -> list[Record]:
        """Read HTML documents, newest first. Each document is in `body["html"]`. See `events` for the arguments."""
        return self.events(HTML_EVENT, key, limit)

    def figures(self, key: str | None = None, limit: int = 1000) -> list[Record]:
        """Read Plotly figures, newest first. See `events` for the arguments.

        The JSON of a figure is in `body["figure"]`, for `plotly.io.from_json`.
        """
        return self.events(FIGURE_EVENT, key, limit)

    def read_media(self, digest: str) -> bytes:
        """Download an image, a video or an audio clip, such as one in a table's cell."""
        return self._connection.content("runs", self.id, "media", digest, project=self.project)[1]

    def _media(self, kind: type[M], event: dict[str, Any]) -> M:
        run = self.project, self.id
        return kind(**Record.fields_of(event), connection=self._connection, run=run)

    def artifacts(self, name: str | None = None, limit: int = 1000) -> list[RecordedArtifact]:
        """Read where files and folders of the run are, such as checkpoints, newest first.

        Args:
            name: Name of the artifacts. Default: all names.
            limit: Maximum number of events, up to 10,000. A large artifact has two events.
        """
        events = RecordedArtifact.latest(self._events(ARTIFACT_EVENT, name, limit))
        return [RecordedArtifact(**RecordedArtifact.fields_of(event)) for event in events]

    @property
    def code(self) -> RecordedCode | None:
        """Code of the latest attempt: commit, uncommitted changes, source of the script, and packages; None if not recorded.

        Raises:
            TensormeterError: The server does not respond or returns an error.
        """
        events = self._events(RUN_CODE, None, 1)
        return RecordedCode(**RecordedCode.fields_of(events[0])) if events else None

    def _blocks(
        self, reader: BlockReader[Block], metric: str, process: str | None, start: int | None, stop: int | None
    ) -> Iterator[Block]:
        if stop is None:
            variants = self._connection.get(
                "runs", self.id, "metrics", project=self.project, prefix=metric, limit=1
            )["metrics"]  # fmt: skip
            times = (int(item["last_time"] or 0) for item in variants if item["name"] == metric)
            stop = max(times, default=0) + 1
        first = 1 if start is None else start
        if process is None:
            yield from reader.read(lambda: [item.id for item in self.processes()], first, stop)
        else:
            yield from reader.read_process(process, first, stop)

    def _events(self, name: str | None, key: str | None, limit: int) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        before = None
        while len(events) < limit:
            document = self._connection.get(
                "runs", self.id, "events",
                project=self.project, name=name, key=key, limit=limit - len(events), before=before,
            )  # fmt: skip
            events += document["events"]
            before = document.get("next")
            if not before:
                break
        return events


def _summaries(document: Mapping[str, Any]) -> dict[str, Summary]:
    return {metric: _summary(numbers) for metric, numbers in document["summary"].items()}


def _summary(document: Mapping[str, Any]) -> Summary:
    if "count" not in document:
        return Summary(document["value"])
    numbers = {name: _number(document[name]) for name in ("last", "min", "max", "mean")}
    others = {"count": document["count"], "last_step": document["last_step"], "last_time": int(document["last_time"])}
    value = document.get("value", document["last"])  # servers of earlier versions send none
    return Summary(numbers["last"] if value == document["last"] else value, **numbers, **others)


def _metric(document: Mapping[str, Any]) -> Metric:
    values = {name: document[name] for name in Metric.__dataclass_fields__ if name in document}
    time = values["last_time"]
    return Metric(**values | {"last": _number(values["last"]), "last_time": None if time is None else int(time)})


def _number(value: Any) -> Any:
    """Return a number from the API. Convert strings, which represent NaN and infinities, to floats."""
    return float(value) if isinstance(value, str) else value
