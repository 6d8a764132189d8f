"""One run, as the server has it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tensormeter.client.blocks import Block, BlockReader
from tensormeter.client.connection import Connection
from tensormeter.client.distributions import BLOCK_DISTRIBUTIONS, DistributionBlock, distribution_reader
from tensormeter.client.histograms import Histograms
from tensormeter.client.points import BLOCK_POINTS, PointBlock, point_reader
from tensormeter.client.records import Record, RecordedImage, RecordedTable
from tensormeter.client.series import SeriesList, query_series
from tensormeter.conventions.semconv import ALERT_EVENT, IMAGE_EVENT, TABLE_EVENT, TEXT_EVENT
from tensormeter.errors import UsageError

__all__ = ["Metric", "Process", "StoredRun", "Summary"]


@dataclass(frozen=True)
class Summary:
    """The numbers of one metric of a run, over its processes; `min`, `max` and `mean` are None if all are NaN.

    `last_time` is in nanoseconds since the Unix epoch; `last_step` is None if no step was logged at that time.
    """

    last: int | float
    min: float | None
    max: float | None
    mean: float | None
    count: int
    last_step: int | None
    last_time: int


@dataclass(frozen=True)
class Process:
    """A process of a run, in one `attempt` at it.

    `rank` and `host` are None where it did not say, `state` before it has started or ended.
    """

    id: str
    attempt: int
    rank: int | None
    host: str | None
    state: str | None
    resource: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Metric:
    """A metric of a run, over its processes; `last*` are None where there is no such thing, as for distributions.

    Metrics of one name that differ in unit or kind are metrics of their own. `scopes` are the names of the libraries that record
    it, "" for tensormeter itself. `kind` is "gauge", "sum", "histogram", "exponential_histogram" or "summary"; `points` counts those of all processes.
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
        """Whether it has numbers, and not distributions."""
        return self.kind in ("gauge", "sum")


class StoredRun:
    """A run as it was when it was read; `refresh` reads it again. What its methods return is read when they are called.

    Every method blocks until the server has answered, and raises `TensormeterError` if it does not, or answers with an
    error. Times are nanoseconds since the Unix epoch.

    Attributes:
        id: Unique in its project.
        project: Name.
        name: For people.
        state: "running", "finished", "failed", "crashed", "preempted" or "stalled".
        attempt: From 1.
        started: Of the earliest start, point or event.
        ended: None while it goes on.
        last_time: When something last arrived for it, by the server's clock.
        group: "" for none.
        tags: Texts.
        notes: Text.
        archived: Whether it is left out of lists.
        points_stored: How many; `points` reads them.
        config: JSON values; NaN and the infinities are the texts "NaN", "Infinity" and "-Infinity".
        summary: By metric; only what was asked for.
    """

    def __init__(self, connection: Connection, document: Mapping[str, Any]) -> None:
        """Of a RUN of the API; `Client` makes them."""
        self._connection = connection
        self._take(document)

    def _take(self, document: Mapping[str, Any]) -> None:
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
        self.config: Mapping[str, Any] = document["config"]
        self.summary = {metric: _summary(one) for metric, one in document["summary"].items()}

    def __repr__(self) -> str:
        return f"StoredRun({self.project!r}, {self.id!r}, name={self.name!r}, state={self.state!r})"

    def refresh(self) -> "StoredRun":
        """Read it again, with all of its configuration and summary, and return it."""
        self._take(self._connection.get("runs", self.id, project=self.project))
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
        """Change what people say about the run; None leaves it as it is. What a trainer sends does not overwrite it."""
        given = {"name": name, "tags": tags, "notes": notes, "group": group, "archived": archived}
        changes = {key: value for key, value in given.items() if value is not None}
        self._take(self._connection.send("PATCH", "runs", self.id, document=changes, project=self.project))
        return self

    def processes(self) -> list[Process]:
        """Its processes, in the order in which they were first seen."""
        found = self._connection.get("runs", self.id, project=self.project)["processes"]
        return [Process(**{key: one[key] for key in Process.__dataclass_fields__}) for one in found]

    def metrics(self) -> list[Metric]:
        """Its metrics, by name; one that has several kinds or units is there several times."""
        found = self._connection.get("runs", self.id, "metrics", project=self.project)["metrics"]
        return [_metric(one) for one in found]

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
        """Points as arrays of float64, with start <= x < stop.

        Args:
            metrics: Names of gauges and sums.
            x: "step", "time" (seconds since the Unix epoch), "relative" (seconds since `started`), or "metric:NAME".
            start: In units of x.
            stop: In units of x.
            max_points: Of one series; 0: all; from 4: samples, in which lowest and highest points are kept.
            process: Only of this process.
            attempt: Of a run that was resumed: this attempt, or "all"; by default what no later one has repeated.
            attributes: Only series whose attributes include these.
            scope: Only of this instrumentation scope.
            unit: Only with this unit.
        """
        if not metrics:
            raise UsageError("series: expected the names of metrics; `metrics()` lists them")
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
        """Every point of a gauge or sum exactly as it was logged, block by block, in bounded memory.

        Of a run that was resumed, those of all attempts are there. A block has points of one series. Processes come one
        after another, and so do the times of each.

        Args:
            metric: Name.
            process: Only of this process.
            start: Only with time >= start.
            stop: Only with time < stop; by default all that had arrived when the first block was asked for.
            block: Points to look at for one request, at most, unless a single stretch of the store is larger.
        """
        reader = point_reader(self._connection, (self.project, self.id), metric, block)
        yield from self._blocks(reader, metric, process, start, stop)

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
        """Distributions of one series of a metric: of its first one, or of the first that fits.

        Args:
            metric: Name.
            x: As for `series`.
            start: In units of x.
            stop: In units of x.
            max_points: 2 to 2000; if there are more, evenly chosen ones, the first and the last among them.
            process: Only of this process.
            attempt: Of a run that was resumed: this attempt, or "all"; by default what no later one has repeated.
            attributes: Only with these attributes.
            scope: Only of this instrumentation scope.
            unit: Only with this unit.
        """
        asked = None if attributes is None else json.dumps(dict(attributes))
        document = self._connection.get(
            "runs", self.id, "histograms",
            project=self.project, metric=metric, x=x, start=start, stop=stop, max_points=max_points, process=process,
            attempt=attempt, attributes=asked, scope=scope, unit=unit,
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
        """Every distribution of a metric exactly as it was logged, block by block, in bounded memory.

        Order and attempts are as for `points`. Exponential histograms have bounds and counts as all others; of those with more
        than 640 buckets neighbours are merged.

        Args:
            metric: Name.
            process: Only of this process.
            start: Only with time >= start.
            stop: Only with time < stop; by default all that had arrived when the first block was asked for.
            block: Distributions to look at for one request, at most, unless a single stretch of the store is larger.
        """
        reader = distribution_reader(self._connection, (self.project, self.id), metric, block)
        yield from self._blocks(reader, metric, process, start, stop)

    def events(self, name: str | None = None, key: str | None = None, limit: int = 1000) -> list[Record]:
        """Events, the newest first.

        Args:
            name: Only of this name; a last `*` stands for anything.
            key: Only those that were logged under this key.
            limit: How many at most, up to 10,000.
        """
        return [Record(**Record.fields_of(one)) for one in self._events(name, key, limit)]

    def alerts(self, limit: int = 1000) -> list[Record]:
        """What its trainer or the server found worth an alert, the newest first."""
        return self.events(ALERT_EVENT, limit=limit)

    def texts(self, key: str | None = None, limit: int = 1000) -> list[Record]:
        """Texts, the newest first; `body["text"]` is the text."""
        return self.events(TEXT_EVENT, key, limit)

    def tables(self, key: str | None = None, limit: int = 1000) -> list[RecordedTable]:
        """Tables, the newest first."""
        return [RecordedTable(**Record.fields_of(one)) for one in self._events(TABLE_EVENT, key, limit)]

    def images(self, key: str | None = None, limit: int = 1000) -> list[RecordedImage]:
        """Images, the newest first; their bytes are read when `read` is called."""
        run = self.project, self.id
        found = self._events(IMAGE_EVENT, key, limit)
        return [RecordedImage(**Record.fields_of(one), connection=self._connection, run=run) for one in found]

    def _blocks(
        self, reader: BlockReader[Block], metric: str, process: str | None, start: int | None, stop: int | None
    ) -> Iterator[Block]:
        if stop is None:
            times = [one.last_time for one in self.metrics() if one.name == metric and one.last_time is not None]
            stop = max(times, default=0) + 1
        first = 1 if start is None else start
        if process is None:
            yield from reader.read(lambda: [one.id for one in self.processes()], first, stop)
        else:
            yield from reader.read_process(process, first, stop)

    def _events(self, name: str | None, key: str | None, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        before = None
        while len(found) < limit:
            document = self._connection.get(
                "runs", self.id, "events",
                project=self.project, name=name, key=key, limit=limit - len(found), before=before,
            )  # fmt: skip
            found += document["events"]
            before = document.get("next")
            if not before:
                break
        return found


def _summary(document: Mapping[str, Any]) -> Summary:
    numbers = {name: _number(document[name]) for name in ("last", "min", "max", "mean")}
    rest = {"count": document["count"], "last_step": document["last_step"], "last_time": int(document["last_time"])}
    return Summary(**numbers, **rest)


def _metric(document: Mapping[str, Any]) -> Metric:
    values = {name: document[name] for name in Metric.__dataclass_fields__ if name in document}
    moment = values["last_time"]
    return Metric(**values | {"last": _number(values["last"]), "last_time": None if moment is None else int(moment)})


def _number(value: Any) -> Any:
    """A number of the API: NaN and the infinities are texts there."""
    return float(value) if isinstance(value, str) else value
