"""Metrics and points of a run."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from tensormeter.client.blocks import Block, BlockReader
from tensormeter.client.connection import Connection
from tensormeter.client.distributions import BLOCK_DISTRIBUTIONS, DistributionBlock, distribution_reader
from tensormeter.client.histograms import Histograms
from tensormeter.client.points import BLOCK_POINTS, PointBlock, point_reader, read_many
from tensormeter.client.run_parts import Metric, Process, metric_of
from tensormeter.client.series import SeriesList, query_series
from tensormeter.errors import UsageError

__all__ = ["METRICS_PAGE", "RunPoints"]

METRICS_PAGE: Final = 5000
"""Number of metric names per request."""


class RunPoints:
    """The methods of `StoredRun` that read processes, metrics and points."""

    id: str
    project: str
    _connection: Connection

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
                yield metric_of(document)
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
