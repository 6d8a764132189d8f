"""The OpenAPI 3.1 document, generated from the classes in `schemas` and `request_schemas`."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tensormeter.server.api import request_schemas, schemas
from tensormeter.server.api.binary_columns import COLUMNS
from tensormeter.server.api.responses import encode, json_response
from tensormeter.server.http.errors import DURABLE_PATH

__all__ = ["describe_api", "openapi_document"]

_Schema = Mapping[str, Any]

_JSON: Final = "application/json"
_BINARY: Final[_Schema] = {"type": "string", "format": "binary"}
_RUN: Final = "/api/v1/runs/{run_id}"
_IN_PATH: Final[Mapping[str, str]] = {"run_id": "ID of the run.", "digest": "Digest of the image."}


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document. A test compares its paths with the server's routes."""
    document = _Document()
    add = document.add
    add("/api/v1/openapi.json", "Describe the API", {_JSON: {"type": "object"}})
    add(DURABLE_PATH, "Sync to disk, and report the commits that survive a power failure", schemas.Durable)
    add("/api/v1/projects", "List all projects", schemas.Projects)
    add("/api/v1/runs", "List runs", schemas.Runs, request_schemas.RunsParameters)
    add(_RUN, "Get a run", schemas.RunDetails, request_schemas.RunDetailsParameters)
    add(
        _RUN,
        "Change a run",
        schemas.Run,
        request_schemas.RunDetailsParameters,
        method="patch",
        body=request_schemas.RunChanges,
    )
    add(_RUN, "Delete a run", None, request_schemas.RunParameters, method="delete")
    add(f"{_RUN}/attempts", "List the attempts of a run", schemas.Attempts, request_schemas.AttemptsParameters)
    add(f"{_RUN}/attempt", "Get the attempt number of a process", schemas.Attempt, request_schemas.AttemptParameters)
    of_run, of_runs = request_schemas.MetricsParameters, request_schemas.MetricsOfRunsParameters
    add(f"{_RUN}/metrics", "List the metrics of a run", schemas.Metrics, of_run)
    add("/api/v1/metrics", "List the metrics of several runs", schemas.Metrics, of_runs)
    of_run, of_runs = request_schemas.SectionsParameters, request_schemas.SectionsOfRunsParameters
    add(f"{_RUN}/sections", "List the sections of a run's metrics", schemas.Sections, of_run)
    add("/api/v1/sections", "List the sections of several runs' metrics", schemas.Sections, of_runs)
    add("/api/v1/fields", "List the fields of a project's runs", schemas.Fields, request_schemas.FieldsParameters)
    add(f"{_RUN}/events", "List the events of a run, newest first", schemas.Events, request_schemas.EventsParameters)
    add(f"{_RUN}/logs", "Get log lines of a run", schemas.Logs, request_schemas.LogsParameters)
    add(
        f"{_RUN}/media/{{digest}}",
        "Get an image, a video or an audio clip",
        {"image/*": _BINARY, "video/*": _BINARY, "audio/*": _BINARY},
        request_schemas.RunParameters,
    )
    sampled = {_JSON: document.schema(schemas.QueryResult), COLUMNS: document.binary(schemas.QueryColumns)}
    add("/api/v1/query", "Get sampled points of many series", sampled, method="post", body=request_schemas.Query)
    full = {_JSON: document.schema(schemas.MetricSeries), COLUMNS: document.binary(schemas.MetricColumns)}
    add(f"{_RUN}/series", "Get every point of a metric", full, request_schemas.SeriesParameters)
    full = {_JSON: document.schema(schemas.ManySeries), COLUMNS: document.binary(schemas.ManyColumns)}
    add(
        f"{_RUN}/series",
        "Get every point of several metrics",
        full,
        request_schemas.RunParameters,
        method="post",
        body=request_schemas.SeriesQuery,
    )
    add(f"{_RUN}/ranks", "Get statistics of a metric across processes", schemas.Ranks, request_schemas.RanksParameters)
    add(f"{_RUN}/histograms", "Get distributions over time", schemas.Histograms, request_schemas.HistogramsParameters)
    distributions = "Get every distribution of a metric"
    add(f"{_RUN}/distributions", distributions, schemas.Distributions, request_schemas.DistributionsParameters)
    data = [document.schema(schemas.Update), document.schema(schemas.Cursor)]
    events = {"type": "string", "contentMediaType": _JSON, "contentSchema": {"anyOf": data}}
    add("/api/v1/stream", "Stream updates of runs", {"text/event-stream": events}, request_schemas.StreamParameters)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tensormeter", "version": version("tensormeter"), "description": "See docs/api.md."},
        "paths": document.paths,
        "components": {
            "schemas": document.components(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


async def describe_api(_: Request) -> Response:
    """Return the OpenAPI document."""
    return json_response(encode(openapi_document()))


class _Document:
    """Collector of the operations, and of the schemas that the operations refer to.

    Attributes:
        paths: Operations by path and method.
    """

    def __init__(self) -> None:
        self.paths: dict[str, dict[str, Any]] = {}
        self._types: list[type[msgspec.Struct]] = []
        error = {_JSON: {"schema": self.schema(schemas.Error)}}
        self._errors = {
            "4XX": {"description": "Client error", "content": error},
            "5XX": {"description": "Server error; retry later", "content": error},
        }

    def schema(self, kind: type[msgspec.Struct]) -> _Schema:
        """Return a reference to the schema of a class, and add the schema to the document's components."""
        self._types.append(kind)
        return {"$ref": f"#/components/schemas/{kind.__name__}"}

    def binary(self, header: type[msgspec.Struct]) -> _Schema:
        """Return the schema of a binary response with this header."""
        return {**_BINARY, "x-header": self.schema(header)}

    def add(
        self,
        path: str,
        summary: str,
        response: type[msgspec.Struct] | Mapping[str, _Schema] | None,
        parameters: type[msgspec.Struct] | None = None,
        *,
        method: str = "get",
        body: type[msgspec.Struct] | None = None,
    ) -> None:
        """Add an operation.

        Args:
            path: Path with parameter names in braces.
            summary: Short description in the imperative.
            response: Class of the JSON response, schemas by media type, or None for an empty response.
            parameters: Class of the query parameters.
            method: HTTP method in lowercase.
            body: Class of the JSON body.
        """
        if response is None:
            success: dict[str, Any] = {"204": {"description": "Done"}}
        else:
            content = response if isinstance(response, Mapping) else {_JSON: self.schema(response)}
            described = {media_type: {"schema": schema} for media_type, schema in content.items()}
            success = {"200": {"description": "OK", "content": described}}
        operation: dict[str, Any] = {"summary": summary, "parameters": [], "responses": success | self._errors}
        for name, description in _IN_PATH.items():
            if f"{{{name}}}" in path:
                about = {"description": description, "schema": {"type": "string"}}
                operation["parameters"].append({"name": name, "in": "path", "required": True} | about)
        if parameters is not None:
            operation["parameters"] += _parameters(parameters)
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": self.schema(body)}}}
        self.paths.setdefault(path, {})[method] = operation

    def components(self) -> dict[str, Any]:
        """Return the schemas of all classes that operations refer to."""
        components = _components(self._types)
        _name_types(components)
        return components


def _components(kinds: list[type[msgspec.Struct]]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for schema in components.values():
        del schema["title"]  # the title repeats the name
    return dict(components)


def _name_types(schema: Any) -> None:
    """Add the type to string enumerations, because msgspec omits the type but client generators need it."""
    if isinstance(schema, dict):
        if all(isinstance(value, str) for value in schema.get("enum", [None])):
            schema["type"] = "string"
        for part in schema.values():
            _name_types(part)
    elif isinstance(schema, list):
        for part in schema:
            _name_types(part)


def _parameters(kind: type[msgspec.Struct]) -> list[_Schema]:
    schema = _components([kind])[kind.__name__]
    required = schema.get("required", ())
    return [_parameter(name, part, required=name in required) for name, part in schema["properties"].items()]


def _parameter(name: str, schema: dict[str, Any], *, required: bool) -> _Schema:
    description = schema.pop("description")
    # The server treats a missing parameter as null, but a query string cannot contain null.
    if schema.get("default", 0) is None:
        del schema["default"]
        alternatives = [part for part in schema.pop("anyOf") if part != {"type": "null"}]
        schema |= alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
    parameter = {"name": name, "in": "query", "required": required, "description": description}
    is_json = schema.get("type") == "object"
    return parameter | ({"content": {_JSON: {"schema": schema}}} if is_json else {"schema": schema})
