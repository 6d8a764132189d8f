"""Export of one run to the tables of an archive."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tensormeter.archive.layout import Kind, media_path, references_in, table_path
from tensormeter.client.archive.distribution_rows import read_distributions
from tensormeter.client.archive.json_text import json_text
from tensormeter.client.archive.point_rows import PointRows
from tensormeter.client.archive.records import read_events, read_lines, write_reversed
from tensormeter.client.archive.table_file import TableFile
from tensormeter.client.connection import ApiError, Connection
from tensormeter.client.run import StoredRun
from tensormeter.client.run_parts import Metric
from tensormeter.conventions.semconv import STEP_METRIC
from tensormeter.disk.atomic import replacing

__all__ = ["RunExport"]

_METRICS: Final = 5000
"""Number of metrics in memory at a time."""

_END: Final = 1 << 62
"""A time in nanoseconds since the Unix epoch that is later than all points."""

_DAMAGED: Final = 500


class RunExport:
    """Export of one run.

    Attributes:
        rows: Number of rows of each table.
        media: Number of media files that the run refers to.
        missing: Descriptions of data that the server could not return.
    """

    def __init__(
        self,
        connection: Connection,
        document: Mapping[str, Any],
        folder: Path,
        file: str,
        on_points: Callable[[int], None],
    ) -> None:
        """
        Args:
            connection: Connection to the server.
            document: Document of the run.
            folder: Folder of the archive.
            file: Name of the run's files, without the extension.
            on_points: Function that receives the number of points of each block.
        """
        self._connection = connection
        self._folder = folder
        self._file = file
        self._on_points = on_points
        self._run = StoredRun(connection, document)
        self._key = self._run.project, self._run.id
        self._is_open = self._run.state in ("running", "stalled")
        self._about = {"project": self._run.project, "run": self._run.id}
        self._ranks: dict[str, int | None] = {}
        self._attempts: dict[str, int] = {}
        self._media: set[str] = set()
        self.rows: dict[Kind, int] = {}
        self.missing: list[str] = []

    @property
    def media(self) -> int:
        return len(self._media)

    def write(self) -> Mapping[str, Any]:
        """Write all tables and media files. Return the run's document, with the summary's results and the processes.

        Raises:
            TensormeterError: The server does not respond or returns an error.
            OSError: A file cannot be written.
        """
        details = self._details()
        for process in details["processes"]:
            rank = process["rank"]
            self._ranks[process["id"]] = rank if type(rank) is int else None
            self._attempts[process["id"]] = process["attempt"]
        self._write_events()  # before points, so that the configuration of a run in progress is not newer than its points
        self._write_metrics()
        self._write_lines()
        # Processes may have joined a run in progress meanwhile.
        self._write_processes((self._details() if self._is_open else details)["processes"])
        return details

    def paths(self) -> list[str]:
        """Return the paths of the tables that were written, relative to the archive."""
        return [table_path(kind, self._file) for kind, rows in self.rows.items() if rows]

    def _details(self) -> dict[str, Any]:
        return self._connection.get("runs", self._run.id, project=self._run.project, fields="config")

    def _table(self, kind: Kind) -> TableFile:
        return TableFile(self._folder / table_path(kind, self._file), kind)

    def _write_processes(self, processes: Sequence[Mapping[str, Any]]) -> None:
        with self._table("processes") as table:
            for process in processes:
                rank, host = process["rank"], process["host"]
                row = self._about | {
                    "process": process["id"],
                    "rank": rank if type(rank) is int else None,
                    "attempt": process["attempt"],
                    "host": host if isinstance(host, str) else None,
                    "state": process["state"],
                    "losses": json_text(process.get("losses", {})),
                    "resource": json_text(process["resource"]),
                }
                table.add(row, len(row["resource"]))
        self.rows["processes"] = table.rows

    def _write_events(self) -> None:
        spooled = TableFile(self._folder / f".{self._file}.events", "events")
        with spooled:
            try:
                for page in read_events(self._connection, self._key):
                    for row, body in page:
                        self._download(body)
                        spooled.add(self._record(row), len(row["body"]))
            except ApiError as error:
                self._note_damage("events", error)
        with self._table("events") as table:
            write_reversed(spooled, table)
        self.rows["events"] = table.rows

    def _write_lines(self) -> None:
        def note(lines: int) -> None:
            self.missing.append(f"{self._name()}: {lines:,} log lines are damaged on the server")

        with self._table("logs") as table:
            try:
                for row in read_lines(self._connection, self._key, note):
                    table.add(self._record(row), len(row["text"]))
            except ApiError as error:
                self._note_damage("log lines", error)
        self.rows["logs"] = table.rows

    def _write_metrics(self) -> None:
        steps = [metric for metric in self._run.iterate_metrics(STEP_METRIC) if metric.name == STEP_METRIC]
        end = max((metric.last_time or 0 for metric in steps), default=_END) if self._is_open else _END
        with self._table("metrics") as metrics, self._table("points") as points, self._table("distributions") as others:
            point_rows = PointRows(points, self._about, self._ranks)
            # All steps are read, so that points that arrive meanwhile have theirs.
            self._write_points(point_rows, [dataclasses.replace(metric, last_time=_END) for metric in steps])
            remaining = self._run.iterate_metrics()
            while page := [*islice(remaining, _METRICS)]:
                for metric in page:
                    metrics.add(self._about | _metric_row(metric))
                known = [metric for metric in page if metric.last_time is not None and metric.name != STEP_METRIC]
                until_end = [dataclasses.replace(metric, last_time=end) for metric in known]
                self._write_points(point_rows, [metric for metric in until_end if metric.numeric])
                self._write_distributions(others, [metric for metric in until_end if not metric.numeric])
            point_rows.flush()
        self.rows |= {"metrics": metrics.rows, "points": points.rows, "distributions": others.rows}

    def _write_points(self, rows: PointRows, metrics: Iterable[Metric]) -> None:
        try:
            for block in self._run.points_of(metrics):
                rows.add(block)
                self._on_points(len(block))
        except ApiError as error:
            self._note_damage("points", error)

    def _write_distributions(self, table: TableFile, metrics: Iterable[Metric]) -> None:
        stops: dict[str, int] = {}
        for metric in metrics:
            stops[metric.name] = max(stops.get(metric.name, 1), (metric.last_time or 0) + 1)
        for name, stop in stops.items():
            try:
                for row in read_distributions(self._connection, self._key, name, stop, [*self._ranks]):
                    size = 8 * sum(
                        len(row.get(part) or ()) for part in ("bounds", "counts", "positive_counts", "negative_counts")
                    )
                    table.add(self._about | {"rank": self._ranks.get(row["process"])} | row, size)
                    self._on_points(1)
            except ApiError as error:
                self._note_damage(f"distributions of {name!r}", error)

    def _record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        process = row["process"]
        return {**self._about, "rank": self._ranks.get(process), "attempt": self._attempts.get(process), **row}

    def _download(self, body: Any) -> None:
        """Download the media that an event's body refers to, unless the archive has them already."""
        for reference in references_in(body):
            digest = reference["digest"]
            path = self._folder / media_path(digest, reference["content_type"])
            if digest in self._media:
                continue
            if not path.exists():
                try:
                    data = self._run.read_media(digest)
                except ApiError as error:
                    if error.status == 404 and "size" not in reference:
                        continue  # not a reference, but a body that looks like one
                    self._note_damage(f"media file {digest}", error)
                    continue
                if hashlib.sha256(data).hexdigest() != digest:
                    self.missing.append(f"{self._name()}: media file {digest} is damaged on the server")
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as file:
                    file.write(data)
            self._media.add(digest)

    def _note_damage(self, what: str, error: ApiError) -> None:
        """Note that data is missing. Raises the error if it does not mean that."""
        if error.status not in (404, _DAMAGED):
            raise error
        self.missing.append(f"{self._name()}: {what}: {error}")

    def _name(self) -> str:
        return f"{self._run.project}/{self._run.id}"


def _metric_row(metric: Metric) -> dict[str, Any]:
    names = ("kind", "temporality", "monotonic", "unit", "description", "processes", "points", "last_step", "last_time")
    last = None if metric.last is None else float(metric.last)
    return {name: getattr(metric, name) for name in names} | {
        "metric": metric.name,
        "scopes": list(metric.scopes),
        "last": last,
    }
