"""What handlers share: threads, parameters, JSON bodies and answers."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tensormeter.otlp.document import parse_document
from tensormeter.server.limits.effort import Effort, Stalls, run_while_connected
from tensormeter.server.store import RunRef

__all__ = [
    "MAX_INTEGER",
    "MAX_NUMBER",
    "MAX_RUNS",
    "MIN_INTEGER",
    "ApiThreads",
    "encode",
    "integer",
    "json_response",
    "number",
    "optional_integer",
    "parameters",
    "parse_ref",
    "read_json",
    "run_ref",
    "run_refs",
    "strings",
    "whole",
]

MAX_JSON: Final = 1 << 20
"""Bytes of a request's body."""

MAX_HELD_JSON: Final = 64 << 20
"""The same of all requests that are being read at one time."""

MAX_RUNS: Final = 200
"""Runs that one request is about."""

MIN_INTEGER: Final = -(1 << 63)
MAX_INTEGER: Final = (1 << 63) - 1
"""What a store can look for."""

MAX_NUMBER: Final = 1e30

_THREADS: Final = 4
_INTEGER: Final = re.compile(r"-?\d{1,19}", re.ASCII)
_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)

_held_json = [0]
"""Bytes of the bodies that the event loop is reading."""

_T = TypeVar("_T")


class ApiThreads:
    """Runs queries on threads, a few at once, apart from those of ingest."""

    def __init__(self, stalled: Callable[[], str | None]) -> None:
        """Args:
        stalled: Why the store would not answer now, or None; does not block.
        """
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._stalls = Stalls(stalled)

    async def run(self, work: Callable[[], _T]) -> _T:
        """What `work` returns or raises; errors as for `Stalls.run`."""
        return await self._stalls.run(work, self._limiter)

    async def run_checked(self, request: Request, work: Callable[[Effort], _T], effort: Effort | None = None) -> _T:
        """As `run`, for work whose loops check its effort: it ends if it takes too long or the client goes away."""
        return await run_while_connected(request, work, self._limiter, effort, stalls=self._stalls)


def parameters(request: Request) -> Mapping[str, str]:
    """The query's parameters; unknown ones are ignored, so that newer clients can talk to older servers."""
    return dict(request.query_params.items())


def run_ref(request: Request) -> RunRef:
    """The run that a path names."""
    return RunRef(request.path_params["run_id"], request.query_params.get("project"))


def parse_ref(text: str, project: str | None = None) -> RunRef:
    """A run in a list: `id` or `project/id`."""
    before, slash, run_id = text.rpartition("/")
    return RunRef(run_id, before if slash else project)


def run_refs(query: Mapping[str, str]) -> list[RunRef]:
    """The runs that the parameter `runs` lists.

    Raises:
        HTTPException: 400, there are none, or more than `MAX_RUNS`.
    """
    refs = [parse_ref(text, query.get("project")) for text in query.get("runs", "").split(",") if text]
    if not refs or len(refs) > MAX_RUNS:
        raise HTTPException(400, f"runs: expected 1 to {MAX_RUNS} ids between commas")
    return refs


def integer(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """A parameter.

    Raises:
        HTTPException: 400, it is not an integer from `low` to `high`.
    """
    value = optional_integer(query, name)
    if value is None:
        return default
    if not low <= value <= high:
        raise HTTPException(400, f"{name}: expected an integer from {low} to {high}, got {value}")
    return value


def optional_integer(query: Mapping[str, str], name: str) -> int | None:
    """A parameter or None; errors as for `integer`."""
    text = query.get(name)
    if text is None:
        return None
    # Nineteen digits are what an int64 has; int() takes long over longer ones, and takes more than digits.
    if not _INTEGER.fullmatch(text) or not MIN_INTEGER <= int(text) <= MAX_INTEGER:
        raise HTTPException(400, f"{name}: expected an integer of 64 bits, got {text[:40]!r}")
    return int(text)


def number(query: Mapping[str, Any], name: str) -> float | None:
    """A parameter, or a field of a body, or None.

    Raises:
        HTTPException: 400, it is not a finite number.
    """
    value = query.get(name)
    if value is None:
        return None
    if isinstance(value, str) and len(value) < 40 and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
        raise HTTPException(400, f"{name}: expected a number, got {str(value)[:40]!r}")
    return float(value)


def whole(value: Any) -> Any:
    """A number of a body whose fraction is zero, as an int: JSON has one kind of numbers, so 12.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


async def read_json(request: Request) -> Mapping[str, Any]:
    """The object in a request's body.

    Raises:
        HTTPException: 413 too large, 400 not an object, 408 too slow, 503 too many at once.
        EncodingError: Not JSON.
    """
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.move_on_after(60) as scope:
            async for part in request.stream():
                size += len(part)
                _held_json[0] += len(part)
                if size > MAX_JSON:
                    raise HTTPException(413, f"the body is larger than {MAX_JSON} bytes")
                if _held_json[0] > MAX_HELD_JSON:
                    raise HTTPException(503, "too many large requests at once; send it again", {"Retry-After": "1"})
                parts.append(part)
    finally:
        _held_json[0] -= size
    if scope.cancelled_caught:
        raise HTTPException(408, "the body took longer than 60 s")
    document = parse_document(b"".join(parts))
    if not isinstance(document, dict):
        raise HTTPException(400, "expected a JSON object as the body")
    return document


def encode(document: Any) -> bytes:
    """JSON, without spaces."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of encoded JSON."""
    return Response(body, status, headers, "application/json")


def strings(document: Mapping[str, Any], name: str, most: int) -> Sequence[str]:
    """A field of a body that is a list of texts, not empty.

    Raises:
        HTTPException: 400 it is not; 413 it has more than `most`.
    """
    value = document.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise HTTPException(400, f"{name}: expected a list of texts, not empty")
    if len(value) > most:
        raise HTTPException(413, f"{name}: expected at most {most}, got {len(value)}; ask in several requests")
    return list(dict.fromkeys(value))
