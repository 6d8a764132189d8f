"""The API's description for programs: OpenAPI 3.1."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from tensormeter.server.api.binary_columns import COLUMNS
from tensormeter.server.api.params import MAX_INTEGER, MAX_NUMBER, MIN_INTEGER, encode, json_response
from tensormeter.server.http.errors import DURABLE_PATH
from tensormeter.server.store import MAX_READ_POINTS

__all__ = ["describe_api", "openapi_document"]

_Schema = Mapping[str, Any]

_TEXT: Final[_Schema] = {"type": "string"}
_INTEGER: Final[_Schema] = {"type": "integer"}
_INT64: Final[_Schema] = {"type": "integer", "minimum": MIN_INTEGER, "maximum": MAX_INTEGER}
_NUMBER: Final[_Schema] = {"type": "number"}
_COORDINATE: Final[_Schema] = {"type": "number", "exclusiveMinimum": -MAX_NUMBER, "exclusiveMaximum": MAX_NUMBER}
_OBJECT: Final[_Schema] = {"type": "object"}
_NANOSECONDS: Final[_Schema] = {
    "type": "string",
    "pattern": "^-?[0-9]+$",
    "description": "Nanoseconds since the Unix epoch.",
}
_ATTEMPT: Final[_Schema] = {"oneOf": [{"type": "integer", "minimum": 1, "maximum": 999_999_999}, {"enum": ["all"]}]}
_JSON_NUMBER: Final[_Schema] = {"oneOf": [_NUMBER, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _nullable(schema: _Schema) -> _Schema:
    return {"oneOf": [schema, {"type": "null"}]}


def _shape(**properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _with_gaps(**properties: _Schema) -> _Schema:
    """The shape of a line: `gaps` is there only if there are some."""
    shape = _shape(**properties)
    return {**shape, "properties": {**properties, "gaps": _list(_JSON_NUMBER)}}


def _damageable(**properties: _Schema) -> _Schema:
    """A shape from which damaged parts may be left out: `damaged` is there only if some are."""
    shape = _shape(**properties)
    return {**shape, "properties": {**properties, "damaged": _list(_TEXT)}}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_CHOICE: Final = ("scope", "unit", "kind", "temporality")
"""Parameters that say which of several metrics of one name is meant."""

_VARIANT: Final = _shape(kind=_TEXT, temporality=_nullable(_TEXT), scope=_TEXT, unit=_TEXT)

_RUN_FIELDS: Final = {
    "id": _TEXT,
    "project": _TEXT,
    "name": _TEXT,
    "state": {"enum": ["running", "finished", "failed", "crashed", "preempted", "stalled"]},
    "attempt": _INTEGER,
    "started": _NANOSECONDS,
    "ended": _nullable(_NANOSECONDS),
    "last_time": _NANOSECONDS,
    "group": _TEXT,
    "tags": _list(_TEXT),
    "notes": _TEXT,
    "archived": {"type": "boolean"},
    "points": _INTEGER,
    "lost": _INTEGER,
    "lag": _nullable(_NUMBER),
    "config": _OBJECT,
    "summary": {"type": "object", "additionalProperties": _ref("Summary")},
}

_SCHEMAS: Final[Mapping[str, _Schema]] = {
    "Error": _shape(error=_shape(code=_TEXT, message=_TEXT)),
    "Summary": _shape(
        last=_JSON_NUMBER,
        min=_nullable(_JSON_NUMBER),
        max=_nullable(_JSON_NUMBER),
        mean=_nullable(_JSON_NUMBER),
        count=_INTEGER,
        last_step=_nullable(_INTEGER),
        last_time=_NANOSECONDS,
    ),
    "Run": _shape(**_RUN_FIELDS, processes=_INTEGER),
    "RunDetails": _shape(
        **_RUN_FIELDS,
        processes=_list(
            _shape(id=_TEXT, attempt=_INTEGER, rank={}, host={}, state=_nullable(_TEXT), resource=_OBJECT),
        ),
        environment=_OBJECT,
        losses={"type": "object", "additionalProperties": _INTEGER},
    ),
    "Metric": _shape(
        name=_TEXT,
        kind={"enum": ["gauge", "sum", "histogram", "exponential_histogram", "summary"]},
        unit=_TEXT,
        description=_TEXT,
        temporality=_nullable(_TEXT),
        monotonic=_nullable({"type": "boolean"}),
        attributes=_list(_OBJECT),
        points=_INTEGER,
        processes=_INTEGER,
        last=_nullable(_JSON_NUMBER),
        last_step=_nullable(_INTEGER),
        last_time=_nullable(_NANOSECONDS),
    ),
    "Event": _shape(
        id=_INTEGER,
        time=_NANOSECONDS,
        observed_time=_nullable(_NANOSECONDS),
        name=_TEXT,
        step=_nullable(_INTEGER),
        process=_TEXT,
        severity_number=_INTEGER,
        severity_text=_TEXT,
        trace_id=_TEXT,
        span_id=_TEXT,
        flags=_INTEGER,
        scope=_OBJECT,
        attributes=_OBJECT,
        body={},
        size=_INTEGER,
    ),
    "Query": {
        "type": "object",
        "required": ["runs", "metrics"],
        "properties": {
            "runs": {**_list(_TEXT), "minItems": 1, "maxItems": 200},
            "metrics": {**_list(_TEXT), "minItems": 1, "maxItems": 200},
            "project": _nullable(_TEXT),
            "x": {"type": "string", "pattern": "^(step|time|relative|metric:.+)$"},
            "start": _nullable(_COORDINATE),
            "stop": _nullable(_COORDINATE),
            "max_points": {"anyOf": [{"const": 0}, {"type": "integer", "minimum": 4, "maximum": 100_000}]},
            "process": _nullable(_TEXT),
            "attributes": _nullable(_OBJECT),
            "after": _nullable(_TEXT),
            "attempt": _nullable(_ATTEMPT),
            **{name: _nullable(_TEXT) for name in _CHOICE},
        },
    },
    "QueryResult": _damageable(
        series=_list(
            _with_gaps(
                run=_TEXT,
                process=_TEXT,
                attempt=_INTEGER,
                metric=_TEXT,
                kind=_TEXT,
                temporality=_nullable(_TEXT),
                monotonic=_nullable({"type": "boolean"}),
                scope=_TEXT,
                unit=_TEXT,
                attributes=_OBJECT,
                total=_INTEGER,
                x=_list(_JSON_NUMBER),
                y=_list(_JSON_NUMBER),
            )
        ),
        cursor=_TEXT,
        reset={"type": "boolean"},
    ),
    "RunChanges": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 1024},
            "tags": {**_list({"type": "string", "minLength": 1, "maxLength": 128}), "maxItems": 100},
            "notes": {"type": "string", "maxLength": 65_536},
            "group": {"type": "string", "maxLength": 65_536},
            "archived": {"type": "boolean"},
        },
    },
}


def _parameter(name: str, schema: _Schema = _TEXT, *, required: bool = False, where: str = "query") -> _Schema:
    return {"name": name, "in": where, "required": required, "schema": schema}


_PROJECT: Final = _parameter("project")
_RUN_ID: Final = _parameter("run_id", where="path", required=True)
_PAGE: Final = {"type": "integer", "minimum": 1, "maximum": 1000}
_RANGE: Final = (_parameter("start", _COORDINATE), _parameter("stop", _COORDINATE))
_ERRORS: Final = {
    "4XX": {"description": "Not that way.", "content": {"application/json": {"schema": _ref("Error")}}},
    "5XX": {"description": "Not now.", "content": {"application/json": {"schema": _ref("Error")}}},
}


def _operation(
    summary: str,
    answer: _Schema | None,
    parameters: Sequence[_Schema] = (),
    *,
    body: str | None = None,
    media_type: str = "application/json",
) -> _Schema:
    done: _Schema = {"204": {"description": "Done."}}
    if answer is not None:
        done = {"200": {"description": "Here.", "content": {media_type: {"schema": answer}}}}
    operation: dict[str, Any] = {"summary": summary, "parameters": list(parameters), "responses": {**done, **_ERRORS}}
    if body is not None:
        content = {"application/json": {"schema": _ref(body)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def openapi_document() -> dict[str, Any]:
    """The document; its paths are those of the routes, which a test compares."""
    run = "/api/v1/runs/{run_id}"
    named = (_RUN_ID, _PROJECT)
    metric = _parameter("metric", required=True)
    choice = [*map(_parameter, _CHOICE)]
    axis = _parameter("x", {"type": "string", "pattern": "^(step|time|relative|metric:.+)$"})
    query: Any = _operation("Sampled points of many series of many runs.", _ref("QueryResult"), body="Query")
    query["responses"]["200"]["content"][COLUMNS] = {"schema": {"type": "string", "format": "binary"}}
    series: Any = _operation(
        "Every point of a metric.",
        _shape(metric=_TEXT, x=_TEXT, series=_list(_OBJECT)),
        [
            *named,
            metric,
            _parameter("x", {"enum": ["step", "time"]}),
            _parameter("process"),
            _parameter("start", _INT64),
            _parameter("stop", _INT64),
            _parameter("limit", {"type": "integer", "minimum": 1, "maximum": MAX_READ_POINTS}),
            _parameter("attempt", _ATTEMPT),
        ],
    )
    series["responses"]["200"]["content"][COLUMNS] = {"schema": {"type": "string", "format": "binary"}}
    paths: dict[str, Any] = {
        "/api/v1/openapi.json": {"get": _operation("This document.", _OBJECT)},
        DURABLE_PATH: {
            "get": _operation(
                "What survives a loss of power: syncs to disk now, and answers how far that went. For those who may send.",
                _shape(epoch=_nullable(_TEXT), committed=_nullable(_INTEGER), durable=_nullable(_INTEGER)),
            )
        },
        "/api/v1/projects": {
            "get": _operation(
                "Every project.",
                _shape(projects=_list(_shape(name=_TEXT, runs=_INTEGER, last_time=_NANOSECONDS))),
            )
        },
        "/api/v1/runs": {
            "get": _operation(
                "A page of runs.",
                _damageable(runs=_list(_ref("Run")), total=_INTEGER),
                [
                    _PROJECT,
                    *(_parameter(name) for name in ("filter", "sort", "fields")),
                    _parameter("limit", _PAGE),
                    _parameter("offset", {"type": "integer", "minimum": 0, "maximum": 1 << 62}),
                ],
            )
        },
        run: {
            "get": _operation("One run.", _ref("RunDetails"), named),
            "patch": _operation("Change what users say about a run.", _ref("Run"), named, body="RunChanges"),
            "delete": _operation("Delete a run.", None, named),
        },
        f"{run}/attempt": {
            "get": _operation(
                "The number of the attempt that a process belongs to.",
                _shape(attempt=_INTEGER, last_step=_nullable(_INTEGER)),
                [
                    *named,
                    *(_parameter(name, {"type": "string", "maxLength": 1024}) for name in ("process", "launch")),
                    *(
                        _parameter(name, {**_INT64, "minimum": 0, "maximum": 1 << 31})
                        for name in ("rank", "world_size")
                    ),
                    *(_parameter(name, {**_INT64, "minimum": 1, "maximum": 1 << 31}) for name in ("least", "number")),
                    _parameter("resume", {"type": "boolean"}),
                ],
            )
        },
        f"{run}/metrics": {"get": _operation("Its metrics.", _shape(metrics=_list(_ref("Metric"))), named)},
        "/api/v1/metrics": {
            "get": _operation(
                "Every metric that any of some runs has.",
                _shape(metrics=_list(_ref("Metric"))),
                [_parameter("runs", {"type": "string", "pattern": "^[^,]+(,[^,]+){0,199}$"}, required=True), _PROJECT],
            )
        },
        f"{run}/events": {
            "get": _operation(
                "Its events, the newest first.",
                _shape(events=_list(_ref("Event")), next=_nullable(_TEXT)),
                [
                    *named,
                    _parameter("name"),
                    _parameter("key"),
                    _parameter("start", _INT64),
                    _parameter("stop", _INT64),
                    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 10_000}),
                    _parameter("before", {"type": "string", "pattern": "^[0-9]{1,18}-[0-9]{1,18}$"}),
                    _parameter("max_body", _INT64),
                ],
            )
        },
        f"{run}/media/{{digest}}": {
            "get": _operation(
                "An image.",
                {"type": "string", "format": "binary"},
                [*named, _parameter("digest", where="path", required=True)],
                media_type="image/*",
            )
        },
        "/api/v1/query": {"post": query},
        f"{run}/series": {"get": series},
        f"{run}/ranks": {
            "get": _operation(
                "Statistics over processes.",
                _shape(
                    x=_list(_JSON_NUMBER),
                    min=_list(_JSON_NUMBER),
                    median=_list(_JSON_NUMBER),
                    max=_list(_JSON_NUMBER),
                    lowest=_list(_TEXT),
                    highest=_list(_TEXT),
                    processes=_INTEGER,
                    variant=_nullable(_VARIANT),
                    others=_list(_VARIANT),
                ),
                [
                    *named,
                    metric,
                    axis,
                    *_RANGE,
                    _parameter("max_points", {"type": "integer", "minimum": 1, "maximum": 100_000}),
                    _parameter("attempt", _ATTEMPT),
                    *choice,
                ],
            )
        },
        f"{run}/histograms": {
            "get": _operation(
                "Distributions over time.",
                {"type": "object", "required": ["points", "total"]},
                [
                    *named,
                    metric,
                    axis,
                    *_RANGE,
                    _parameter("process"),
                    {"name": "attributes", "in": "query", "content": {"application/json": {"schema": _OBJECT}}},
                    _parameter("max_points", {"type": "integer", "minimum": 2, "maximum": 2000}),
                    _parameter("attempt", _ATTEMPT),
                    *choice,
                ],
            )
        },
        f"{run}/distributions": {
            "get": _operation(
                "Every distribution of a metric.",
                _shape(metric=_TEXT, series=_list(_OBJECT)),
                [
                    *named,
                    metric,
                    _parameter("process"),
                    _parameter("start", _INT64),
                    _parameter("stop", _INT64),
                    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 20_000}),
                    _parameter("attempt", _ATTEMPT),
                ],
            )
        },
        "/api/v1/stream": {
            "get": _operation(
                "Live updates.",
                _TEXT,
                [_parameter("runs", required=True), _parameter("after"), _PROJECT],
                media_type="text/event-stream",
            )
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "tensormeter", "version": version("tensormeter"), "description": "See docs/api.md."},
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


async def describe_api(_: Request) -> Response:
    """The OpenAPI document."""
    return json_response(encode(openapi_document()))
