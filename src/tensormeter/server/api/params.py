"""Validation of request parameters and bodies against the classes in `request_schemas`."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final, TypeVar

import anyio
import msgspec
from msgspec import inspect
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tensormeter.errors import EncodingError
from tensormeter.otlp.document import parse_document
from tensormeter.server.api.request_schemas import (
    MAX_INTEGER,
    MAX_RUNS,
    MIN_INTEGER,
    MetricsOfRunsParameters,
    RunListParameters,
)
from tensormeter.server.store import RunRef

__all__ = [
    "invalid",
    "parse_position",
    "parse_run_refs",
    "read_body",
    "read_parameters",
    "run_ref",
    "run_refs",
    "unique",
]

MAX_JSON: Final = 1 << 20
"""Maximum size of a request body in bytes."""

MAX_READING_JSON: Final = 64 << 20
"""Maximum total size in bytes of all bodies that are being read at the same time."""

_MAX_POSITION: Final = 39
"""Maximum length of a position in characters: two 63-bit integers and a separator."""

_SHOWN: Final = 40
"""Maximum number of characters of an invalid value that an error message shows."""

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)

_INTEGER: Final = re.compile(r"-?\d{1,19}", re.ASCII)
"""Pattern of an int64, which has at most 19 digits. `int` is slow for long strings, and accepts other formats."""

_POSITIVE: Final = re.compile(r"\d{1,9}", re.ASCII)
_NUMBER: Final = re.compile(r"(?=.{1,39}$)[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_FIELD: Final = re.compile(r"(?:field `|at `\$\.)(\w+)")
"""Pattern that finds the name of the invalid field in an error message from msgspec."""

_BOOLEANS: Final = {"true": True, "false": False}

_reading_json = [0]
"""Total size of the bodies that the event loop is reading, in bytes."""

_T = TypeVar("_T", bound=msgspec.Struct)


def run_ref(request: Request) -> RunRef:
    """Return the run that a request's path identifies."""
    return RunRef(request.path_params["run_id"], request.query_params.get("project"))


def _parse_run_ref(text: str, project: str | None = None) -> RunRef:
    """Parse a list entry of the form `id` or `project/id`."""
    before, slash, run_id = text.rpartition("/")
    return RunRef(run_id, before if slash else project)


def parse_run_refs(texts: Iterable[str], project: str | None = None) -> list[RunRef]:
    """Parse the entries of a list of runs, and return each run once. `project/id` also covers the entry `id`."""
    refs = dict.fromkeys(_parse_run_ref(text, project) for text in texts)
    named = {ref.run_id for ref in refs if ref.project is not None}
    return [ref for ref in refs if ref.project is not None or ref.run_id not in named]


def run_refs(parameters: RunListParameters | MetricsOfRunsParameters) -> list[RunRef]:
    """Return the runs that the parameter `runs` lists, each once.

    Raises:
        HTTPException: 400 if there are no runs or more than `MAX_RUNS`.
    """
    texts = [text for text in parameters.runs.split(",") if text]
    if not texts or len(texts) > MAX_RUNS:
        raise invalid("runs", RunListParameters, {"runs": parameters.runs})
    return parse_run_refs(texts, parameters.project)


def read_parameters(request: Request, kind: type[_T]) -> _T:
    """Return a request's parameters. Unknown parameters are ignored, so that newer clients work with older servers.

    Raises:
        HTTPException: 400 if a parameter is missing or invalid.
    """
    converters = _converters(kind)
    document = {}
    for name, text in request.query_params.items():
        if name in converters:
            try:
                document[name] = converters[name](text)
            except EncodingError as error:
                raise HTTPException(400, f"{name}: {error}") from None
    return _validated(document, kind)


async def read_body(request: Request, kind: type[_T]) -> _T:
    """Return the JSON object in a request's body. Unknown fields are ignored.

    Raises:
        HTTPException: 413 if the body is too large, 400 if it is invalid, 408 if it arrives too slowly, 503 if too many
            bodies are being read.
        EncodingError: The body is not JSON.
    """
    document = parse_document(await _read(request))
    if not isinstance(document, dict):
        raise HTTPException(400, "expected a JSON object as the body")
    # JSON has only one kind of number, so 12.0 counts as an integer.
    return _validated({name: _whole(document[name]) for name in kind.__struct_fields__ if name in document}, kind)


def unique(name: str, values: list[str], most: int) -> list[str]:
    """Return the values of a field without duplicates.

    Raises:
        HTTPException: 413 if there are more than `most` values, including duplicates.
    """
    if len(values) > most:
        raise HTTPException(413, f"{name}: expected at most {most}, got {len(values)}; send several requests")
    return list(dict.fromkeys(values))


def parse_position(text: str) -> tuple[int, int] | None:
    """Parse the time and number of an event or log line, separated by a hyphen; None if the text is not valid."""
    time, _, number = text.partition("-")
    if time.isascii() and time.isdecimal() and number.isascii() and number.isdecimal() and len(text) <= _MAX_POSITION:
        position = int(time), int(number)
        if max(position) <= MAX_INTEGER:
            return position
    return None


def invalid(name: str, kind: type[msgspec.Struct], document: Mapping[str, Any]) -> HTTPException:
    """Return the error for an invalid field. The message contains the name, the expected value and the actual value."""
    field = next(field for field in _fields(kind) if field.name == name)
    value = _shown(document[name]) if name in document else "nothing"
    return HTTPException(400, f"{name}: expected {_expected(field.type)}, got {value}")


def _shown(value: Any) -> str:
    """Return the beginning of a value as JSON. The rest is not encoded, because it can be large or deeply nested."""
    text = ""
    for piece in _ENCODER.iterencode(value[:_SHOWN] if isinstance(value, str) else value):
        text += piece
        if len(text) >= _SHOWN:
            break
    return text[:_SHOWN]


def _validated(document: Mapping[str, Any], kind: type[_T]) -> _T:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise invalid(_FIELD.findall(str(error))[0], kind, document) from None


async def _read(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.move_on_after(60) as scope:
            async for part in request.stream():
                size += len(part)
                _reading_json[0] += len(part)
                if size > MAX_JSON:
                    raise HTTPException(413, f"the body is larger than {MAX_JSON} bytes")
                if _reading_json[0] > MAX_READING_JSON:
                    raise HTTPException(503, "too many large requests at once; retry later", {"Retry-After": "1"})
                parts.append(part)
    finally:
        _reading_json[0] -= size
    if scope.cancelled_caught:
        raise HTTPException(408, "the body took longer than 60 s")
    return b"".join(parts)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < MAX_INTEGER else value


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info.fields


@cache
def _converters(kind: type[msgspec.Struct]) -> Mapping[str, Callable[[str], Any]]:
    """Return the function that converts each parameter's text. Invalid text stays a string and fails validation."""
    return {field.name: _converter(field.type) for field in _fields(kind)}


def _converter(kind: inspect.Type) -> Callable[[str], Any]:
    match _alternatives(kind):
        case [inspect.IntType()]:
            return lambda text: int(text) if _INTEGER.fullmatch(text) else text
        case [inspect.IntType(), inspect.LiteralType()]:
            return lambda text: int(text) if _POSITIVE.fullmatch(text) else text or None
        case [inspect.FloatType()]:
            return lambda text: float(text) if _NUMBER.fullmatch(text) else text
        case [inspect.BoolType()]:
            return lambda text: _BOOLEANS.get(text, text)
        case [inspect.DictType()]:
            return _parse_object
        case _:
            return lambda text: text


def _parse_object(text: str) -> Any:
    """Parse JSON. An empty string means a missing value. `null` is invalid, so it is returned as a string."""
    if not text:
        return None
    document = parse_document(text)
    return text if document is None else document


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    """Return the types that a field's value can have, except null."""
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [part for alternative in kind.types for part in _alternatives(alternative)]
    return [] if isinstance(kind, inspect.NoneType) else [kind]


def _expected(kind: inspect.Type) -> str:
    """Return a description of a type's valid values, for an error message."""
    if isinstance(kind, inspect.Metadata) and kind.extra is not None:
        return str(kind.extra["expected"])
    return ", or ".join(map(_described, _alternatives(kind)))


def _described(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType(ge=int(least), le=int(most)) if (least, most) != (MIN_INTEGER, MAX_INTEGER):
            return f"an integer from {least} to {most}"
        case inspect.IntType():
            return "a 64-bit integer"
        case inspect.FloatType(gt=float(least), lt=float(most)):
            return f"a number between {least:g} and {most:g}"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType(min_length=least, max_length=int(most)):
            return f"a string of {least} to {most} characters" if least else f"a string of at most {most} characters"
        case inspect.ListType(item_type=item, max_length=int(most)):
            return f"a list of at most {most} strings{_expected(item).removeprefix('a string')}"
        case inspect.ListType():
            return "a nonempty list of strings"
        case inspect.LiteralType(values=values):
            return " or ".join(map(str, values))
        case inspect.DictType():
            return "a JSON object"
        case _:
            return "a string"
