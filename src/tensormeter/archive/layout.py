"""Layout of an archive: the names of its files, and the columns of its tables."""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from tensormeter.archive.arrow import load_arrow

__all__ = [
    "FORMAT",
    "KINDS",
    "MANIFEST",
    "MEDIA",
    "PROGRESS",
    "README",
    "README_TEXT",
    "RUNS",
    "SUMS",
    "VERSION",
    "Kind",
    "media_path",
    "references_in",
    "schema_of",
    "table_path",
]

FORMAT: Final = "tensormeter-archive"
VERSION: Final = 1
"""Version of the layout. A reader accepts archives of this version only; new columns and files do not change it."""

MANIFEST: Final = "manifest.json"
README: Final = "README.txt"
SUMS: Final = "SHA256SUMS"
RUNS: Final = "runs.parquet"
MEDIA: Final = "media"
PROGRESS: Final = "progress.jsonl"
"""File of an unfinished export, with one line per finished run."""

Kind = Literal["processes", "metrics", "points", "distributions", "events", "logs"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""Tables of a run. Each is a file in the folder of this name."""

_EXTENSIONS: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "video/mp4": "mp4",
    "video/webm": "webm",
}
_DIGEST: Final = re.compile("[0-9a-f]{64}")

_PREFIX: Final = {"project": "name", "run": "name", "process": "name", "rank": "int64", "attempt": "int64"}
_SERIES: Final = {
    "metric": "name",
    "attributes": "name",
    "scope": "name",
    "unit": "name",
    "kind": "name",
    "temporality": "name",
    "monotonic": "bool",
    "step": "int64",
    "time": "time",
}
_RECORD: Final = {"severity_number": "int64", "severity_text": "name", "scope": "name", "attributes": "text"}
_TRACE: Final = {"trace_id": "text", "span_id": "text", "flags": "int64"}

_COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "runs": {
        "project": "name", "id": "text", "file": "text", "name": "text", "state": "name", "attempt": "int64",
        "started": "time", "ended": "time", "group": "text", "job_type": "text", "tags": "texts", "notes": "text",
        "archived": "bool", "parent_run": "text", "parent_step": "int64", "config": "text", "results": "text",
        "definitions": "text", "lost": "int64", "processes": "int64", "metrics": "int64", "points": "int64",
        "distributions": "int64", "events": "int64", "logs": "int64", "media": "int64",
    },
    "processes": {**_PREFIX, "host": "text", "state": "name", "losses": "text", "resource": "text"},
    "metrics": {
        "project": "name", "run": "name", "metric": "text", "kind": "name", "temporality": "name", "monotonic": "bool",
        "unit": "name", "description": "text", "scopes": "texts", "processes": "int64", "points": "int64",
        "last": "float64", "last_step": "int64", "last_time": "time",
    },
    "points": {**_PREFIX, **_SERIES, "value": "float64", "integer": "int64"},
    "distributions": {
        **_PREFIX, **_SERIES, "start_time": "time", "count": "uint64", "sum": "float64", "min": "float64",
        "max": "float64", "bounds": "floats", "counts": "counts", "quantiles": "pairs", "scale": "int64",
        "zero_count": "uint64", "zero_threshold": "float64", "positive_offset": "int64", "positive_counts": "counts",
        "negative_offset": "int64", "negative_counts": "counts",
    },
    "events": {
        **_PREFIX, "time": "time", "observed_time": "time", "name": "name", "key": "text", "step": "int64",
        **_RECORD, "body": "text", **_TRACE,
    },
    "logs": {
        **_PREFIX, "time": "time", "observed_time": "time", "stream": "name", **_RECORD, "text": "text",
        "json": "bool", **_TRACE,
    },
}  # fmt: skip


def schema_of(table: str) -> Any:
    """Return the pyarrow schema of a table: `runs`, or one of `KINDS`."""
    arrow = load_arrow()
    types = {
        "name": arrow.dictionary(arrow.int32(), arrow.string()),
        "text": arrow.string(),
        "texts": arrow.list_(arrow.string()),
        "int64": arrow.int64(),
        "uint64": arrow.uint64(),
        "float64": arrow.float64(),
        "bool": arrow.bool_(),
        "time": arrow.timestamp("ns", "UTC"),
        "floats": arrow.list_(arrow.float64()),
        "counts": arrow.list_(arrow.uint64()),
        "pairs": arrow.list_(arrow.struct([("quantile", arrow.float64()), ("value", arrow.float64())])),
    }
    return arrow.schema([(name, types[kind]) for name, kind in _COLUMNS[table].items()])


def table_path(kind: Kind, file: str) -> str:
    """Return the path of a run's table, relative to the archive. `file` is the column of this name in `runs.parquet`."""
    return f"{kind}/{file}.parquet"


def media_path(digest: str, content_type: str) -> str:
    """Return the path of a media file, relative to the archive."""
    return f"{MEDIA}/{digest}.{_EXTENSIONS[content_type]}"


def references_in(body: Any) -> list[dict[str, Any]]:
    """Return the parts of an event's body that refer to media files.

    Such a part has the keys `digest` (64 hexadecimal digits) and `content_type`. The importer replaces them by the bytes.
    """
    found: list[dict[str, Any]] = []
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            digest, content_type = value.get("digest"), value.get("content_type")
            is_reference = isinstance(digest, str) and _DIGEST.fullmatch(digest)
            if is_reference and isinstance(content_type, str) and content_type in _EXTENSIONS:
                found.append(value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found


README_TEXT: Final = """\
This folder contains runs of tensormeter: all points, distributions, events, log lines and media files.

Everything is a Parquet file or a media file. To read it, you need no tensormeter; pandas, DuckDB, Polars or any other
reader of Parquet is enough:

    import pandas
    runs = pandas.read_parquet("runs.parquet")
    points = pandas.read_parquet("points/RUN.parquet")     # RUN is the column `file` of runs.parquet

    SELECT metric, step, value FROM 'points/*.parquet' ORDER BY run, metric, time     -- DuckDB

    runs.parquet                one row per run: names, states, tags, notes, configuration
    processes/RUN.parquet       one row per process, in order of first appearance: rank, attempt, resource attributes
    metrics/RUN.parquet         one row per metric: kind, unit, description, number of points, last value
    points/RUN.parquet          one row per point of a gauge or sum, in long format
    distributions/RUN.parquet   one row per histogram, exponential histogram or summary
    events/RUN.parquet          one row per event: configuration, code, media items, alerts, starts and ends
    logs/RUN.parquet            one row per line of console output or log record
    media/                      images, videos and audio clips, named after the SHA-256 digests of their bytes
    manifest.json               format, version, counts, and what is missing
    SHA256SUMS                  checksums of the other files; run `sha256sum --check --quiet SHA256SUMS` to verify them

A table without rows has no file. Times are nanoseconds since the Unix epoch, in UTC. Columns with attributes, bodies and
configurations contain JSON, in which NaN and infinities are the strings "NaN", "Infinity" and "-Infinity". docs/archive.md
of tensormeter describes every column.

To load the archive into a server, run `tensormeter import FOLDER`. Importing it again changes nothing.
"""
