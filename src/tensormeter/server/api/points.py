"""Handlers that return points (sampled, in full, or as statistics across processes) and distributions."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.server.api import request_schemas, schemas
from tensormeter.server.api.binary_columns import COLUMNS, encode_columns, encode_full_columns
from tensormeter.server.api.documents import variant_fields
from tensormeter.server.api.params import invalid, parse_run_refs, read_body, read_parameters, run_ref, unique
from tensormeter.server.api.responses import encode, json_response
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.cpu_budget import CpuBudget, TookTooLongError
from tensormeter.server.limits.responses import TOO_LONG, BufferedResponse, ResponseLimiter
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.downsampling import choose_evenly
from tensormeter.server.query.points.histograms import Distribution, decode_distribution, decode_exactly
from tensormeter.server.query.points.lines import Line
from tensormeter.server.query.points.parents import query_with_parents
from tensormeter.server.query.points.raw import RawSeries
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import PointsResult, query_points
from tensormeter.server.query.points.variant import Variant, VariantFilter
from tensormeter.server.query.ranks.cache import RankCache
from tensormeter.server.store import RunRef, TooManyPointsError, TooManySeriesError
from tensormeter.server.store.models.canonical_json import json_value
from tensormeter.server.store.models.points import Blobs, Points

__all__ = ["PointsApi"]

MAX_JSON_POINTS: Final = 2_500_000
"""Maximum number of points in a JSON response. Writing a million points takes a fraction of a second."""

_SERIES_WEIGHT: Final = 20
"""Number of points that each series counts as, in addition to its own points, because its header takes space."""

_FEWEST_POINTS: Final = 4
"""Smallest `max_points` of a query with sampling. A query without sampling has `max_points` 0."""

_SLICE: Final = 16_384
"""Number of values to encode at once. The encoder holds the GIL, so long calls would delay ingest."""

_FEW: Final = 64
"""Number of distributions to encode at once."""

_MOST_BUCKETS: Final = 640
"""Maximum number of buckets of an exponential histogram in `/distributions`.

This is twice the number that tensormeter and OpenTelemetry SDKs create.
"""

_RUN: Final = "/api/v1/runs/{run_id}"


class PointsApi:
    """Handlers that return points and distributions."""

    def __init__(self, stores: Stores, threads: ApiThreads, limiter: ResponseLimiter) -> None:
        self._stores = stores
        self._threads = threads
        self._response_limiter = limiter
        self._ranks = RankCache()

    def routes(self) -> list[Route]:
        """Return the handlers' routes."""
        return [
            Route("/api/v1/query", self.query, methods=["POST"]),
            Route(f"{_RUN}/series", self.series, methods=["GET", "POST"]),
            Route(f"{_RUN}/ranks", self.ranks),
            Route(f"{_RUN}/histograms", self.histograms),
            Route(f"{_RUN}/distributions", self.distributions),
        ]

    async def query(self, request: Request) -> Response:
        """Return sampled points of many series and runs."""
        body = await read_body(request, request_schemas.Query)
        refs, query = _query(body)
        binary = COLUMNS in request.headers.get("accept", "")

        def work(most: int, budget: CpuBudget) -> BufferedResponse:
            read = query_with_parents if body.parents and query.axis.is_step else query_points
            result = read(self._stores.of(request), refs, query, most, budget.check)
            reset = query.after is not None and result.complete
            size = sum(series.x.nbytes + series.y.nbytes + series.gaps.nbytes for series in result.series)
            if binary:
                return BufferedResponse(encode_columns(result, reset=reset, check=budget.check), size, COLUMNS)
            _check_json(sum(len(series.x) for series in result.series), len(result.series))
            return BufferedResponse(_encode_result(result, reset=reset), size, "application/json")

        return await self._response_limiter.points(
            request, self._threads.run_checked, work, sampled=query.max_points > 0
        )

    async def series(self, request: Request) -> Response:
        """Return every point of a metric (GET), or of several metrics (POST)."""
        ref = run_ref(request)
        parameters: request_schemas.SeriesParameters | request_schemas.SeriesQuery
        if request.method == "POST":
            parameters = await read_body(request, request_schemas.SeriesQuery)
            metric = None
            metrics = unique("metrics", parameters.metrics, request_schemas.MAX_FULL_METRICS)
        else:
            parameters = read_parameters(request, request_schemas.SeriesParameters)
            metric = parameters.metric
            metrics = [metric]
        x = parameters.x
        query = _raw_query(metrics, parameters, Axis.parse(x))
        binary = COLUMNS in request.headers.get("accept", "")

        def work(most: int, budget: CpuBudget) -> BufferedResponse:
            series = RunReader(self._stores.of(request), ref, query, budget.check).raw(most)
            if binary:
                return BufferedResponse(encode_full_columns(metric, x, series, budget.check), _size(series), COLUMNS)
            _check_json(sum(len(line.points) for line in series), len(series))
            return BufferedResponse(_encode_full(metric, x, series), _size(series), "application/json")

        return await self._response_limiter.points(request, self._threads.run_checked, work, parameters.limit)

    async def ranks(self, request: Request) -> Response:
        """Return statistics of a metric over a run's processes."""
        ref, parameters = run_ref(request), read_parameters(request, request_schemas.RanksParameters)
        query = RunQuery(
            (parameters.metric,),
            Axis.parse(parameters.x),
            parameters.start,
            parameters.stop,
            attempt=parameters.attempt,
            variant=_variant_filter(parameters),
            max_points=parameters.max_points,
        )

        def work(budget: CpuBudget) -> bytes:
            project = request.state.access.project
            statistics = self._ranks.query(self._stores.of(request), ref, query, project=project, check=budget.check)
            return encode(
                schemas.Ranks(
                    x=_numbers(statistics.x),
                    min=_numbers(statistics.minimum),
                    median=_numbers(statistics.median),
                    max=_numbers(statistics.maximum),
                    lowest=statistics.lowest,
                    highest=statistics.highest,
                    processes=statistics.processes,
                    variant=None if statistics.variant is None else _variant(statistics.variant),
                    others=[*map(_variant, statistics.others)],
                )
            )

        return json_response(await self._read(request, work))

    async def histograms(self, request: Request) -> Response:
        """Return distributions of a metric over time."""
        ref, parameters = run_ref(request), read_parameters(request, request_schemas.HistogramsParameters)
        query = RunQuery(
            (parameters.metric,),
            Axis.parse(parameters.x),
            parameters.start,
            parameters.stop,
            parameters.process,
            parameters.attempt,
            variant=_variant_filter(parameters),
            attributes=parameters.attributes,
            max_points=parameters.max_points,
            numeric=False,
        )

        def work(budget: CpuBudget) -> bytes:
            lines = RunReader(self._stores.of(request), ref, query, budget.check).lines().lines
            return encode(_histograms(lines, query))

        return json_response(await self._read(request, work))

    async def distributions(self, request: Request) -> Response:
        """Return every distribution of a metric."""
        ref, parameters = run_ref(request), read_parameters(request, request_schemas.DistributionsParameters)
        query, exact = _raw_query([parameters.metric], parameters, Axis(None), numeric=False), parameters.exact

        def work(most: int, budget: CpuBudget) -> BufferedResponse:
            series = RunReader(self._stores.of(request), ref, query, budget.check).raw(most)
            pieces = _encode_distributions(parameters.metric, series, exact=exact)
            return BufferedResponse(pieces, _size(series), "application/json")

        return await self._response_limiter.points(request, self._threads.run_checked, work, parameters.limit)

    async def _read(self, request: Request, work: Callable[[CpuBudget], bytes]) -> bytes:
        """Run `work` on a worker thread.

        Raises:
            TooManyPointsError: The work uses too much processor time.
        """
        try:
            return await self._threads.run_checked(request, work)
        except TookTooLongError:
            raise TooManyPointsError(TOO_LONG) from None


def _check_json(points: int, series: int) -> None:
    """Check that a JSON response would not be too large.

    Raises:
        TooManySeriesError: The response would be too large.
    """
    if points + _SERIES_WEIGHT * series > MAX_JSON_POINTS:
        raise TooManySeriesError(
            f"{points} points of {series} series are too many for JSON; the limit is {MAX_JSON_POINTS} points, and "
            f"each series counts as {_SERIES_WEIGHT} additional points. Request the binary form (`Accept: "
            f"{COLUMNS}`), or "
            "fewer points with `start` and `stop`"
        )


def _query(body: request_schemas.Query) -> tuple[list[RunRef], RunQuery]:
    if 0 < body.max_points < _FEWEST_POINTS:
        raise invalid("max_points", request_schemas.Query, {"max_points": body.max_points})
    refs = parse_run_refs(unique("runs", body.runs, request_schemas.MAX_RUNS), body.project)
    query = RunQuery(
        tuple(unique("metrics", body.metrics, request_schemas.MAX_METRICS)),
        Axis.parse(body.x or "step"),
        body.start,
        body.stop,
        None if body.process == "all" else body.process,
        body.attempt,
        body.after or None,
        _variant_filter(body),
        body.attributes,
        body.max_points,
    )
    return refs, query


def _raw_query(
    metrics: Sequence[str],
    parameters: request_schemas.SeriesParameters
    | request_schemas.SeriesQuery
    | request_schemas.DistributionsParameters,
    axis: Axis,
    *,
    numeric: bool = True,
) -> RunQuery:
    return RunQuery(
        tuple(metrics),
        axis,
        parameters.start,
        parameters.stop,
        parameters.process,
        parameters.attempt,
        numeric=numeric,
    )


def _histograms(lines: Sequence[Line], query: RunQuery) -> schemas.Histograms:
    chosen = next((line for line in lines if query.matches(line.series)), None)
    if chosen is None:
        return schemas.Histograms(points=[], total=0)
    series = chosen.series
    assert isinstance(series.points, Blobs)
    points = []
    for index in choose_evenly(len(chosen.x), query.max_points).tolist():
        distribution = decode_distribution(series.kind, series.points.blobs[index])
        points.append(schemas.HistogramPoint(x=json_value(float(chosen.x[index])), **_distribution(distribution)))
    return schemas.Histograms(
        points=points,
        total=len(chosen.x),
        process=series.process,
        **variant_fields(series),
        attributes=series.attributes,
    )


def _distribution(distribution: Distribution) -> dict[str, Any]:
    return {
        "count": distribution.count,
        "sum": json_value(distribution.sum),
        "min": json_value(distribution.min),
        "max": json_value(distribution.max),
        "bounds": json_value(distribution.bounds),
        "counts": distribution.counts,
        "quantiles": json_value(distribution.quantiles) if distribution.quantiles else UNSET,
    }


def _exact(distribution: Distribution) -> dict[str, Any]:
    """Return the fields that only exact distributions have."""
    fields: dict[str, Any] = {"start_time": distribution.start_time} if distribution.start_time else {}
    point = distribution.exponential
    if point is not None:
        positive, negative = (
            schemas.ExponentialBuckets(side.offset, list(side.bucket_counts))
            for side in (point.positive, point.negative)
        )
        zero_threshold = json_value(point.zero_threshold)
        fields["exponential"] = schemas.Exponential(point.scale, point.zero_count, zero_threshold, positive, negative)
    return fields


def _variant_filter(
    query: request_schemas.Query | request_schemas.RanksParameters | request_schemas.HistogramsParameters,
) -> VariantFilter:
    return VariantFilter(query.scope, query.unit, query.kind, query.temporality)


def _variant(variant: Variant) -> schemas.Variant:
    kind, scope, unit = variant
    temporality: Any = kind.temporality
    return schemas.Variant(kind.name, temporality, scope, unit)


def _numbers(values: NDArray[np.float64]) -> list[Any]:
    numbers: list[Any] = values.tolist()
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        numbers[index] = json_value(numbers[index])
    return numbers


def _encode_result(result: PointsResult, *, reset: bool) -> Generator[bytes, None, None]:
    yield b'{"series":['
    for position, series in enumerate(result.series):
        header = schemas.SampledHeader(
            run=series.run,
            process=series.process,
            attempt=series.attempt,
            metric=series.metric,
            **variant_fields(series),
            attributes=series.attributes,
            total=series.total,
            child=series.child or UNSET,
        )
        yield (b"," if position else b"") + encode(header)[:-1]
        for name, column in (("x", series.x), ("y", series.y), ("gaps", series.gaps)):
            if name != "gaps" or len(column):
                yield from _encode_array(name, column)
        yield b"}"
    footer = schemas.QueryFooter(cursor=result.cursor, reset=reset, damaged=result.damaged or UNSET)
    yield b"]," + encode(footer)[1:]


def _encode_array(name: str, column: NDArray[np.float64]) -> Iterator[bytes]:
    start = f',"{name}":['.encode()
    for first in range(0, len(column), _SLICE):
        yield start + encode(_numbers(column[first : first + _SLICE]))[1:-1]
        start = b","
    yield b"]" if len(column) else start + b"]"


def _size(all_series: Sequence[RawSeries]) -> int:
    """Return the number of bytes of memory that the series use."""
    size = 0
    for series in all_series:
        arrays = series.steps, series.stepped, series.gaps, *series.points.arrays()
        size += sum(array.nbytes for array in arrays)
        if isinstance(series.points, Blobs):
            size += sum(map(len, series.points.blobs))
    return size


def _encode_full(
    metric: str | None, x: Literal["step", "time"], all_series: Sequence[RawSeries]
) -> Generator[bytes, None, None]:
    """Yield the document in pieces; `metric` is None if there are several. Starlette requests each piece on a worker thread."""
    header = schemas.ManySeriesHeader(x) if metric is None else schemas.MetricSeriesHeader(metric, x)
    yield encode(header)[:-1] + b',"series":['
    ambiguous = metric is None or len({(series.kind, series.scope, series.unit) for series in all_series}) > 1
    for position, series in enumerate(all_series):
        fields = variant_fields(series) if ambiguous else {"kind": series.kind.name}
        about = schemas.FullHeader(
            metric=series.metric if metric is None else UNSET,
            process=series.process,
            attempt=series.attempt,
            **fields,
            attributes=series.attributes,
        )
        yield (b"," if position else b"") + encode(about)[:-1]
        for name in ("time", "step", "value"):
            yield f',"{name}":['.encode()
            for first in range(0, len(series.points), _SLICE):
                numbers = _column(series, name, slice(first, first + _SLICE))
                yield (b"," if first else b"") + encode(numbers)[1:-1]
            yield b"]"
        if len(series.gaps):
            yield b',"gaps":' + encode(series.gaps.tolist())
        yield b"}"
    yield b"]}"


def _column(series: RawSeries, name: str, part: slice) -> list[Any]:
    if name == "time":
        return list(series.points.times[part].tolist())
    if name == "step":
        steps, stepped = series.steps[part].tolist(), series.stepped[part]
        if stepped.all():
            return list(steps)
        return [step if has_step else None for step, has_step in zip(steps, stepped.tolist(), strict=True)]
    points = series.points[part]
    assert isinstance(points, Points)
    values: list[Any] = points.values()
    for index in np.flatnonzero(~points.integers & ~np.isfinite(points.words.view(np.float64))).tolist():
        values[index] = json_value(values[index])
    return values


def _encode_distributions(metric: str, all_series: Sequence[RawSeries], *, exact: bool) -> Generator[bytes, None, None]:
    """Yield the document in pieces, like `_encode_full`."""
    yield encode({"metric": metric})[:-1] + b',"series":['
    for position, series in enumerate(all_series):
        header = schemas.DistributionHeader(
            process=series.process, attempt=series.attempt, **variant_fields(series), attributes=series.attributes
        )
        yield (b"," if position else b"") + encode(header)[:-1] + b',"points":['
        for first in range(0, len(series.points), _FEW):
            part = slice(first, first + _FEW)
            times, steps = _column(series, "time", part), _column(series, "step", part)
            points = series.points[part]
            assert isinstance(points, Blobs)
            distributions = (
                decode_exactly(series.kind, blob) if exact else decode_distribution(series.kind, blob, _MOST_BUCKETS)
                for blob in points.blobs
            )
            documents = [
                schemas.DistributionPoint(time=time, step=step, **_distribution(distribution), **_exact(distribution))
                for time, step, distribution in zip(times, steps, distributions, strict=True)
            ]
            yield (b"," if first else b"") + encode(documents)[1:-1]
        yield b"]}"
    yield b"]}"
