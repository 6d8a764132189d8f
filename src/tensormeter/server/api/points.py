"""Points: sampled for charts, in full, over processes, and distributions."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.otlp.document import parse_document
from tensormeter.server.api.binary_columns import COLUMNS, encode_columns, encode_full_columns
from tensormeter.server.api.params import (
    MAX_RUNS,
    ApiThreads,
    encode,
    integer,
    json_response,
    number,
    optional_integer,
    parameters,
    parse_ref,
    read_json,
    run_ref,
    strings,
    whole,
)
from tensormeter.server.api.schemas import variant_json
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.effort import Effort, TookTooLongError
from tensormeter.server.limits.responses import TOO_LONG, Answers, HeldResponse
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.downsampling import choose_evenly
from tensormeter.server.query.points.histograms import Distribution, decode_distribution
from tensormeter.server.query.points.lines import Line
from tensormeter.server.query.points.raw import RawSeries
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import PointsResult, query_points
from tensormeter.server.query.points.shadowing import parse_attempt
from tensormeter.server.query.points.variant import Variant, VariantFilter
from tensormeter.server.query.ranks.cache import RankCache
from tensormeter.server.store import MAX_READ_POINTS, RunRef, TooManyPointsError, TooManySeriesError
from tensormeter.server.store.models.canonical_json import json_value
from tensormeter.server.store.models.points import Blobs, Points

__all__ = ["PointsApi"]

MAX_METRICS: Final = 200
MAX_POINTS: Final = 100_000
MAX_DISTRIBUTIONS: Final = 20_000

MAX_JSON_POINTS: Final = 2_500_000
"""Points of one answer in JSON: writing a million takes about a second."""

_SERIES_WEIGHT: Final = 20
"""Points that the beginning of a series counts as."""

_SLICE: Final = 16_384
"""Numbers that are encoded at once: the encoder holds the interpreter, and ingest must not wait for long."""

_FEW: Final = 64
"""The same of distributions."""

_MOST_BUCKETS: Final = 640
"""Of an exponential histogram that is handed out as it was logged: twice what OpenTelemetry's SDKs and tensormeter make."""

_RUN: Final = "/api/v1/runs/{run_id}"

_CHOICE: Final = ("scope", "unit", "kind", "temporality")
"""Parameters that say which of several metrics of one name is meant."""


class PointsApi:
    """Handlers that return points."""

    def __init__(self, stores: Stores, threads: ApiThreads, answers: Answers) -> None:
        self._stores = stores
        self._threads = threads
        self._answers = answers
        self._ranks = RankCache()

    def routes(self) -> list[Route]:
        """Where the handlers go."""
        return [
            Route("/api/v1/query", self.query, methods=["POST"]),
            Route(f"{_RUN}/series", self.series),
            Route(f"{_RUN}/ranks", self.ranks),
            Route(f"{_RUN}/histograms", self.histograms),
            Route(f"{_RUN}/distributions", self.distributions),
        ]

    async def query(self, request: Request) -> Response:
        """Sampled points of many series of many runs."""
        refs, query = _query(await read_json(request))
        binary = COLUMNS in request.headers.get("accept", "")

        def work(most: int, effort: Effort) -> HeldResponse:
            result = query_points(self._stores.of(request), refs, query, most, effort.check)
            reset = query.after is not None and result.complete
            held = sum(one.x.nbytes + one.y.nbytes + one.gaps.nbytes for one in result.series)
            if binary:
                return HeldResponse(encode_columns(result, reset=reset, check=effort.check), held, COLUMNS)
            _check_json(sum(len(one.x) for one in result.series), len(result.series))
            return HeldResponse(_encode_result(result, reset=reset), held, "application/json")

        return await self._answers.points(request, self._threads.run_checked, work, sampled=query.max_points > 0)

    async def series(self, request: Request) -> Response:
        """Every point of a metric."""
        ref, query = run_ref(request), parameters(request)
        metric, x = query.get("metric"), query.get("x", "step")
        if not metric:
            raise HTTPException(400, "metric: expected the name of a metric; /metrics lists them")
        if x not in ("step", "time"):
            raise HTTPException(400, f"x: expected step or time, got {x[:40]!r}")
        points = _raw_query(metric, x, query)
        limit = integer(query, "limit", MAX_READ_POINTS, 1, MAX_READ_POINTS)
        binary = COLUMNS in request.headers.get("accept", "")

        def work(most: int, effort: Effort) -> HeldResponse:
            found = RunReader(self._stores.of(request), ref, points, effort.check).raw(most)
            if binary:
                return HeldResponse(encode_full_columns(metric, x, found, effort.check), _held(found), COLUMNS)
            _check_json(sum(len(one.points) for one in found), len(found))
            return HeldResponse(_encode_full(metric, x, found), _held(found), "application/json")

        return await self._answers.points(request, self._threads.run_checked, work, limit)

    async def ranks(self, request: Request) -> Response:
        """Statistics of a metric over the processes of a run."""
        ref, query = run_ref(request), parameters(request)
        wanted = RunQuery(
            (_metric(query),),
            Axis.parse(query.get("x", "step")),
            number(query, "start"),
            number(query, "stop"),
            attempt=parse_attempt(query.get("attempt")),
            variant=_choice(query),
            max_points=integer(query, "max_points", 500, 1, MAX_POINTS),
        )

        def work(effort: Effort) -> bytes:
            project = request.state.access.project
            found = self._ranks.query(self._stores.of(request), ref, wanted, project=project, check=effort.check)
            return encode(
                {
                    "x": _numbers(found.x),
                    "min": _numbers(found.minimum),
                    "median": _numbers(found.median),
                    "max": _numbers(found.maximum),
                    "lowest": found.lowest,
                    "highest": found.highest,
                    "processes": found.processes,
                    "variant": None if found.variant is None else _variant(found.variant),
                    "others": [*map(_variant, found.others)],
                }
            )

        return json_response(await self._read(request, work))

    async def histograms(self, request: Request) -> Response:
        """Distributions of a metric over time."""
        ref, query = run_ref(request), parameters(request)
        points = RunQuery(
            (_metric(query),),
            Axis.parse(query.get("x", "step")),
            number(query, "start"),
            number(query, "stop"),
            query.get("process"),
            parse_attempt(query.get("attempt")),
            variant=_choice(query),
            attributes=_attributes(query.get("attributes")),
            max_points=integer(query, "max_points", 200, 2, 2000),
            numeric=False,
        )

        def work(effort: Effort) -> bytes:
            lines = RunReader(self._stores.of(request), ref, points, effort.check).lines().lines
            return encode(_histograms(lines, points))

        return json_response(await self._read(request, work))

    async def distributions(self, request: Request) -> Response:
        """Every distribution of a metric."""
        ref, query = run_ref(request), parameters(request)
        metric = _metric(query)
        points = _raw_query(metric, "time", query, numeric=False)
        limit = integer(query, "limit", 2000, 1, MAX_DISTRIBUTIONS)

        def work(most: int, effort: Effort) -> HeldResponse:
            found = RunReader(self._stores.of(request), ref, points, effort.check).raw(most)
            return HeldResponse(_encode_distributions(metric, found), _held(found), "application/json")

        return await self._answers.points(request, self._threads.run_checked, work, limit)

    async def _read(self, request: Request, work: Callable[[Effort], bytes]) -> bytes:
        """What `work` returns.

        Raises:
            TooManyPointsError: It takes too much processor time.
        """
        try:
            return await self._threads.run_checked(request, work)
        except TookTooLongError:
            raise TooManyPointsError(TOO_LONG) from None


def _check_json(points: int, series: int) -> None:
    """Refuse to write too much as JSON.

    Raises:
        TooManySeriesError: It is too much.
    """
    if points + _SERIES_WEIGHT * series > MAX_JSON_POINTS:
        raise TooManySeriesError(
            f"{points} points of {series} series are too many for JSON: more than {MAX_JSON_POINTS} points, each series counting as "
            f"{_SERIES_WEIGHT} more; ask for the binary form (`Accept: {COLUMNS}`), or for fewer points with `start` and `stop`"
        )


def _query(document: Mapping[str, Any]) -> tuple[list[RunRef], RunQuery]:
    project = document.get("project")
    most = whole(document.get("max_points", 1000))
    if isinstance(most, bool) or not isinstance(most, int) or not (most == 0 or 4 <= most <= MAX_POINTS):
        raise HTTPException(400, f"max_points: expected 0 (all) or 4 to {MAX_POINTS}, got {str(most)[:40]}")
    process, after, attributes = document.get("process"), document.get("after"), document.get("attributes")
    x = document.get("x", "step")
    choice = [(name, document.get(name)) for name in _CHOICE]
    for name, value in (("process", process), ("after", after), ("x", x), ("project", project), *choice):
        if value is not None and not isinstance(value, str):
            raise HTTPException(400, f"{name}: expected a text, got {str(value)[:40]!r}")
    if attributes is not None and not isinstance(attributes, dict):
        raise HTTPException(400, "attributes: expected an object")
    refs = [parse_ref(text, project) for text in strings(document, "runs", MAX_RUNS)]
    query = RunQuery(
        tuple(strings(document, "metrics", MAX_METRICS)),
        Axis.parse(x or "step"),
        number(document, "start"),
        number(document, "stop"),
        None if process == "all" else process,
        parse_attempt(whole(document.get("attempt"))),
        after or None,
        _choice(document),
        attributes,
        most,
    )
    return refs, query


def _raw_query(metric: str, x: str, query: Mapping[str, str], *, numeric: bool = True) -> RunQuery:
    return RunQuery(
        (metric,),
        Axis.parse(x),
        optional_integer(query, "start"),
        optional_integer(query, "stop"),
        query.get("process"),
        parse_attempt(query.get("attempt")),
        numeric=numeric,
    )


def _histograms(lines: Sequence[Line], query: RunQuery) -> dict[str, Any]:
    chosen = next((line for line in lines if query.matches(line.series)), None)
    if chosen is None:
        return {"points": [], "total": 0}
    series = chosen.series
    assert isinstance(series.points, Blobs)
    points = []
    for index in choose_evenly(len(chosen.x), query.max_points).tolist():
        found = decode_distribution(series.kind, series.points.blobs[index])
        points.append({"x": json_value(float(chosen.x[index]))} | _distribution(found))
    about = {"process": series.process} | variant_json(series) | {"attributes": series.attributes}
    return {"points": points, "total": len(chosen.x)} | about


def _distribution(one: Distribution) -> dict[str, Any]:
    document = {
        "count": one.count,
        "sum": json_value(one.sum),
        "min": json_value(one.min),
        "max": json_value(one.max),
        "bounds": json_value(one.bounds),
        "counts": one.counts,
    }
    return document | ({"quantiles": json_value(one.quantiles)} if one.quantiles else {})


def _choice(query: Mapping[str, Any]) -> VariantFilter:
    return VariantFilter(*(query.get(name) for name in _CHOICE))


def _variant(variant: Variant) -> dict[str, Any]:
    kind, scope, unit = variant
    return {"kind": kind.name, "temporality": kind.temporality, "scope": scope, "unit": unit}


def _metric(query: Mapping[str, str]) -> str:
    metric = query.get("metric")
    if not metric:
        raise HTTPException(400, "metric: expected the name of a metric; /metrics lists them")
    return metric


def _attributes(text: str | None) -> Mapping[str, Any] | None:
    if not text:
        return None
    found = parse_document(text)
    if not isinstance(found, dict):
        raise HTTPException(400, f"attributes: expected a JSON object, got {text[:40]!r}")
    return found


def _numbers(values: NDArray[np.float64]) -> list[Any]:
    numbers: list[Any] = values.tolist()
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        numbers[index] = json_value(numbers[index])
    return numbers


def _encode_result(result: PointsResult, *, reset: bool) -> Generator[bytes, None, None]:
    yield b'{"series":['
    for position, one in enumerate(result.series):
        about = {"run": one.run, "process": one.process, "attempt": one.attempt}
        rest = {"metric": one.metric} | variant_json(one) | {"attributes": one.attributes, "total": one.total}
        yield (b"," if position else b"") + encode(about | rest)[:-1]
        for name, column in (("x", one.x), ("y", one.y), ("gaps", one.gaps)):
            if name != "gaps" or len(column):
                yield from _encode_array(name, column)
        yield b"}"
    rest = {"damaged": result.damaged} if result.damaged else {}
    yield b"]," + encode({"cursor": result.cursor, "reset": reset} | rest)[1:]


def _encode_array(name: str, column: NDArray[np.float64]) -> Iterator[bytes]:
    start = f',"{name}":['.encode()
    for first in range(0, len(column), _SLICE):
        yield start + encode(_numbers(column[first : first + _SLICE]))[1:-1]
        start = b","
    yield b"]" if len(column) else start + b"]"


def _held(found: Sequence[RawSeries]) -> int:
    """Bytes of series in memory."""
    size = 0
    for one in found:
        size += (
            one.steps.nbytes + one.stepped.nbytes + one.gaps.nbytes + sum(array.nbytes for array in one.points.arrays())
        )
        if isinstance(one.points, Blobs):
            size += sum(map(len, one.points.blobs))
    return size


def _encode_full(metric: str, x: str, found: Sequence[RawSeries]) -> Generator[bytes, None, None]:
    """The document piece by piece; Starlette draws each piece on a worker thread."""
    yield encode({"metric": metric, "x": x})[:-1] + b',"series":['
    ambiguous = len({(one.kind, one.scope, one.unit) for one in found}) > 1
    for position, series in enumerate(found):
        about = {"process": series.process, "attempt": series.attempt, "kind": series.kind.name}
        about |= variant_json(series) if ambiguous else {}
        head = encode(about | {"attributes": series.attributes})[:-1]
        yield (b"," if position else b"") + head
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
        pairs = zip(series.steps[part].tolist(), series.stepped[part].tolist(), strict=True)
        return [step if stepped else None for step, stepped in pairs]
    points = series.points[part]
    assert isinstance(points, Points)
    return [json_value(value) for value in points.values()]


def _encode_distributions(metric: str, found: Sequence[RawSeries]) -> Generator[bytes, None, None]:
    """The document piece by piece, as `_encode_full`."""
    yield encode({"metric": metric})[:-1] + b',"series":['
    for position, series in enumerate(found):
        about = {"process": series.process, "attempt": series.attempt} | variant_json(series)
        yield (b"," if position else b"") + encode(about | {"attributes": series.attributes})[:-1] + b',"points":['
        for first in range(0, len(series.points), _FEW):
            part = slice(first, first + _FEW)
            times, steps = _column(series, "time", part), _column(series, "step", part)
            points = series.points[part]
            assert isinstance(points, Blobs)
            decoded = (decode_distribution(series.kind, blob, _MOST_BUCKETS) for blob in points.blobs)
            documents = [
                {"time": time, "step": step} | _distribution(one)
                for time, step, one in zip(times, steps, decoded, strict=True)
            ]
            yield (b"," if first else b"") + encode(documents)[1:-1]
        yield b"]}"
    yield b"]}"
