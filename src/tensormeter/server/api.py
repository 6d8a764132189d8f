"""The query API: JSON under /api/v1/.

Every answer is valid JSON: NaN and the infinities are the strings "NaN", "Infinity" and "-Infinity".
Times are integers, nanoseconds since the Unix epoch.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tensormeter.server.store import MetricSummary, Series, Store, XAxis
from tensormeter.server.store.canonical import json_value

__all__ = ["Api"]

MAX_PAGE: Final = 1000

_READERS: Final = 4
_SLICE: Final = 16_384
"""Numbers that are encoded at once: the encoder holds the interpreter, and ingest must not wait for long."""

_AXES: Final[dict[str, XAxis]] = {"step": "step", "time": "time"}

_T = TypeVar("_T")


class Api:
    """Handlers of the queries. All work happens on worker threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = anyio.CapacityLimiter(_READERS)

    def routes(self) -> list[Route]:
        """Where the handlers go."""
        run = "/api/v1/runs/{run_id}"
        return [
            Route("/api/v1/projects", self.projects),
            Route("/api/v1/runs", self.runs),
            Route(run, self.run),
            Route(f"{run}/metrics", self.metrics),
            Route(f"{run}/series", self.series),
        ]

    async def projects(self, request: Request) -> Response:
        """Every project."""
        _parameters(request)
        projects = await self._read(self._store.projects)
        return JSONResponse({"projects": [asdict(project) for project in projects]})

    async def runs(self, request: Request) -> Response:
        """A page of runs, newest first."""
        query = _parameters(request, "project", "limit", "offset")
        limit = _integer(query, "limit", 100, 1, MAX_PAGE)
        offset = _integer(query, "offset", 0, 0, 1 << 62)

        def work() -> bytes:
            runs, total = self._store.runs(query.get("project"), limit=limit, offset=offset)
            return _encode({"runs": [asdict(run) for run in runs], "total": total})

        return _json(await self._read(work))

    async def run(self, request: Request) -> Response:
        """One run, with the last value of every metric."""
        query = _parameters(request, "project")
        run_id = request.path_params["run_id"]

        def work() -> bytes:
            run = self._store.run(run_id, query.get("project"))
            metrics = self._store.metrics(run_id, run.project)
            return _encode(asdict(run) | {"last": _last_values(metrics)})

        return _json(await self._read(work))

    async def metrics(self, request: Request) -> Response:
        """Every series of a run, without its points."""
        query = _parameters(request, "project")
        run_id = request.path_params["run_id"]

        def work() -> bytes:
            metrics = self._store.metrics(run_id, query.get("project"))
            return _encode({"metrics": [json_value(asdict(metric)) for metric in metrics]})

        return _json(await self._read(work))

    async def series(self, request: Request) -> Response:
        """Every point of a metric."""
        query = _parameters(request, "project", "metric", "x", "process", "start", "stop")
        run_id = request.path_params["run_id"]
        metric, x = query.get("metric"), _AXES.get(query.get("x", "step"))
        if not metric:
            raise HTTPException(400, "metric: expected the name of a metric; /metrics lists them")
        if x is None:
            raise HTTPException(400, f"x: expected step or time, got {query['x'][:40]!r}")
        start, stop = _optional_integer(query, "start"), _optional_integer(query, "stop")

        def work() -> list[Series]:
            return self._store.series(
                run_id,
                metric,
                project=query.get("project"),
                process=query.get("process"),
                x=x,
                start=start,
                stop=stop,
            )

        found = await self._read(work)
        return StreamingResponse(_encode_series(metric, x, found), media_type="application/json")

    async def _read(self, work: Callable[[], _T]) -> _T:
        return await anyio.to_thread.run_sync(work, limiter=self._threads)


def _parameters(request: Request, *known: str) -> dict[str, str]:
    """The query's parameters; unknown ones are ignored, so that newer clients can talk to older servers."""
    return {name: value for name, value in request.query_params.items() if name in known}


def _integer(query: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    value = _optional_integer(query, name)
    if value is None:
        return default
    if not low <= value <= high:
        raise HTTPException(400, f"{name}: expected an integer from {low} to {high}, got {value}")
    return value


def _optional_integer(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    # Twenty digits are more than any int64 has; int() takes long over longer ones, and takes more than digits.
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        raise HTTPException(400, f"{name}: expected an integer, got {text[:40]!r}")
    return int(text)


def _last_values(metrics: Sequence[MetricSummary]) -> dict[str, Any]:
    """The latest value of each metric, over its processes and attribute sets."""
    latest: dict[str, tuple[int, int | float]] = {}
    for metric in metrics:
        if metric.last is not None and metric.last.time > latest.get(metric.metric, (0,))[0]:
            latest[metric.metric] = (metric.last.time, metric.last.value)
    return {name: json_value(value) for name, (_, value) in latest.items()}


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _encode_series(metric: str, x: str, found: Sequence[Series]) -> Iterator[bytes]:
    """The document piece by piece; Starlette draws each piece on a worker thread."""
    yield _encode({"metric": metric, "x": x})[:-1] + b',"series":['
    for position, series in enumerate(found):
        head = _encode({"process": series.process, "attributes": series.attributes})[:-1]
        yield (b"," if position else b"") + head
        for name in ("time", "step", "value"):
            yield f',"{name}":['.encode()
            for first in range(0, len(series.points), _SLICE):
                numbers = _column(series, name, slice(first, first + _SLICE))
                text = json.dumps(numbers, allow_nan=False, separators=(",", ":"))[1:-1]
                yield ("," if first else "").encode() + text.encode()
            yield b"]"
        yield b"}"
    yield b"]}"


def _column(series: Series, name: str, part: slice) -> list[Any]:
    if name == "time":
        return list(series.points.times[part].tolist())
    if name == "step":
        pairs = zip(series.steps[part].tolist(), series.stepped[part].tolist(), strict=True)
        return [step if stepped else None for step, stepped in pairs]
    return [json_value(value) for value in series.points[part].values()]
