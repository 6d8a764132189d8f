"""Reading of events and log lines, as rows of an archive."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tensormeter.archive.arrow import load_arrow, load_parquet
from tensormeter.client.archive.json_text import json_text
from tensormeter.client.archive.table_file import TableFile
from tensormeter.client.connection import Connection
from tensormeter.conventions.semconv import MEDIA_KEY

__all__ = ["read_events", "read_lines", "write_reversed"]

_EVENTS: Final = 10_000
_LINES: Final = 10_000
_LONGEST_LINE: Final = 4 << 20
_FIRST: Final = "0-0"
_RECORD: Final = ("severity_text", "trace_id", "span_id")


def read_events(connection: Connection, run: tuple[str, str]) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    """Read the events of a run page by page, newest first. Yield rows without `project`, `run`, `rank` and `attempt`, and bodies."""
    project, run_id = run
    before: str | None = None
    while True:
        page = connection.get("runs", run_id, "events", project=project, limit=_EVENTS, before=before)
        yield [(_event_row(event), event["body"]) for event in page["events"]]
        before = page["next"]
        if not before:
            return


def read_lines(
    connection: Connection, run: tuple[str, str], on_damage: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Read the log lines of a run, oldest first, as rows without `project`, `run`, `rank` and `attempt`.

    Args:
        connection: Connection to the server.
        run: Project and ID of the run.
        on_damage: Function that receives the number of lines that the server could not read.
    """
    project, run_id = run
    after: str | None = _FIRST
    while after is not None:
        page = connection.get(
            "runs", run_id, "logs", project=project, after=after, limit=_LINES, max_text=_LONGEST_LINE
        )
        if page.get("damaged"):
            on_damage(page["damaged"])
        yield from map(_line_row, page["lines"])
        after = page["newer"]


def write_reversed(spooled: TableFile, target: TableFile) -> None:
    """Copy the rows of a complete file in reverse order, and remove the file."""
    if not spooled.rows:
        return
    arrow = load_arrow()
    file = load_parquet().ParquetFile(spooled.path)
    try:
        for number in reversed(range(file.num_row_groups)):
            table = file.read_row_group(number).cast(target.schema)
            target.write_group(table.take(arrow.array(range(len(table) - 1, -1, -1))))
    finally:
        file.close()
    spooled.path.unlink()


def _event_row(event: Mapping[str, Any]) -> dict[str, Any]:
    observed = event["observed_time"]
    return {
        "process": event["process"],
        "time": int(event["time"]),
        "observed_time": None if observed is None else int(observed),
        "name": event["name"],
        "key": event["attributes"].get(MEDIA_KEY) if isinstance(event["attributes"].get(MEDIA_KEY), str) else None,
        "step": event["step"],
        "severity_number": event["severity_number"],
        "scope": json_text(event["scope"]),
        "attributes": json_text(event["attributes"]),
        "body": json_text(event["body"]),
        "flags": event["flags"],
        **{name: event[name] for name in _RECORD},
    }


def _line_row(line: Mapping[str, Any]) -> dict[str, Any]:
    observed = line.get("observed_time")
    return {
        "process": line["process"],
        "time": int(line["time"]),
        "observed_time": None if observed is None else int(observed),
        "stream": line["stream"],
        "severity_number": line["severity"],
        "text": line["text"],
        "json": line.get("json", False),
        "scope": json_text(line.get("scope", {})),
        "attributes": json_text(line.get("attributes", {})),
        "flags": line.get("flags", 0),
        **{name: line.get(name, "") for name in _RECORD},
    }
