"""Import of one run of an archive."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.archive.layout import Kind
from tensormeter.conventions.semconv import (
    AUDIO_EVENT,
    FIGURE_EVENT,
    HTML_EVENT,
    IMAGE_EVENT,
    IMAGES_EVENT,
    RUN_HEARTBEAT,
    RUN_ID,
    SERVICE_NAME,
    TABLE_EVENT,
    TEXT_EVENT,
    VIDEO_EVENT,
)
from tensormeter.importers.archive.distribution_series import distribution_series
from tensormeter.importers.archive.first_rows import FirstRows, find_first_rows
from tensormeter.importers.archive.folder import ArchiveFolder
from tensormeter.importers.archive.json_columns import parse_object
from tensormeter.importers.archive.point_requests import PointRequests
from tensormeter.importers.archive.point_series import PointColumns
from tensormeter.importers.archive.records import event_of, line_of
from tensormeter.importers.archive.series_rows import SeriesKey, Stretch, Variant, stretches_of
from tensormeter.importers.archive.server_run import SentFields, ServerRun
from tensormeter.importers.record_requests import INVALID, RecordRequests
from tensormeter.importers.registry import ImportContext, SourceError
from tensormeter.otlp.batch import STEP_METRIC, Event, Gauge, Sum
from tensormeter.otlp.encode import encode_events

__all__ = ["RunImport"]

_ITEMS: Final = frozenset(
    (AUDIO_EVENT, FIGURE_EVENT, HTML_EVENT, IMAGE_EVENT, IMAGES_EVENT, TABLE_EVENT, TEXT_EVENT, VIDEO_EVENT)
)


class RunImport:
    """Import of one run. Memory is bounded by the largest row group."""

    def __init__(self, folder: ArchiveFolder, row: Mapping[str, Any], context: ImportContext) -> None:
        """
        Args:
            folder: Archive of the run.
            row: Row of the run in `runs.parquet`.
            context: Import that the run belongs to.
        """
        self._folder = folder
        self._row = row
        self._file: str = row["file"]
        self._context = context
        self._project = context.project(row["project"])
        self._sent = SentFields(row["id"], self._project)
        self._resources: dict[str, dict[str, Any]] = {}
        self._losses: dict[str, dict[str, Any]] = {}
        self._resumed: set[str] = set()
        self._descriptions: dict[Variant, str] = {}
        self._server = None if context.api is None else ServerRun(context.api, self._project, row["id"])

    def send(self) -> None:
        """Send the run.

        The order matters: processes appear in the order of the archive, steps arrive before the points that they belong to,
        and a run that has ended is known to have ended before its points arrive.

        Raises:
            SourceError: The list of processes is damaged. Other damage is reported.
            TensormeterError: A request could not be sent.
        """
        self._read_processes()
        stored = None if self._server is None else self._server.points()
        if stored is None:
            self._part(self._announce)
        self._part(self._send_events)
        server = self._server
        if server is not None and (stored is None or stored < (self._row["points"] or 0)):
            self._part(lambda: self._edit(server))
        self._part(self._send_lines)
        known = self._known_metrics() if stored else frozenset()
        first = self._first_rows()
        self._part(lambda: self._send_first_rows(first, known))
        self._part(lambda: self._send_points(first, known))
        self._part(lambda: self._send_distributions(first, known))
        if server is not None:
            self._part(lambda: self._restore_losses(server))
        self._context.tally.runs += 1
        self._context.tally.projects[self._context.options.project or self._row["project"]] = None

    def _part(self, send: Callable[[], None]) -> None:
        """Send a part of the run. If it cannot be read, report that, and continue with the next part."""
        try:
            send()
        except SourceError as error:
            self._report(str(error))

    def _report(self, fault: str) -> None:
        self._context.tally.report(f"run {self._row['id']}: {fault}")

    def _tables(self, kind: Kind) -> Iterator[Any]:
        return self._folder.tables(kind, self._file, self._context.advance)

    def _read_processes(self) -> None:
        try:
            for table in self._folder.tables("processes", self._file):
                for row in table.to_pylist():
                    resource = parse_object(row["resource"])
                    if self._context.options.project:
                        resource |= {SERVICE_NAME: self._project, RUN_ID: self._row["id"]}
                    self._resources[row["process"]] = resource
                    self._losses[row["process"]] = parse_object(row["losses"])
                    self._sent.add_resource(resource)
                    if (row["attempt"] or 1) > 1:
                        self._resumed.add(row["process"])
        except SourceError as error:
            raise SourceError(f"run {self._row['id']}: {error}; the run cannot be imported without it") from None

    def _announce(self) -> None:
        """Create the processes in the order of the archive. Heartbeats are not stored."""
        for resource in self._resources.values():
            self._heartbeat(resource, {})

    def _send_events(self) -> None:
        requests = self._record_requests()
        for row in self._rows("events"):
            try:
                event, size = event_of(row, self._folder, self._report)
            except SourceError as error:
                self._report(str(error))
                continue
            self._sent.add_event(event)
            self._context.tally.media += event.name in _ITEMS
            requests.add(row["process"], event, size)
        requests.flush()

    def _send_lines(self) -> None:
        requests = self._record_requests()
        for row in self._rows("logs"):
            try:
                requests.add(row["process"], *line_of(row))
            except SourceError as error:
                self._report(str(error))
                continue
            self._context.tally.logs += 1
        requests.flush()

    def _record_requests(self) -> RecordRequests:
        return RecordRequests(self._context.sender, self._resources, self._report, derive_severity=False)

    def _rows(self, kind: Kind) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table of records."""
        for table in self._tables(kind):
            for row in table.to_pylist():
                if row["process"] not in self._resources or row["time"] is None:
                    self._report(f"{kind}: left out a row of the unknown process {row['process']!r}")
                else:
                    yield row

    def _edit(self, server: ServerRun) -> None:
        """Give the run the name, tags and other fields that users have edited."""
        self._context.sender.flush()
        if server.points() is None:
            return  # the server refused everything
        names = ("tags", "notes", "group", "job_type", "archived")
        wanted = {name: self._row[name] for name in names}
        wanted["name"] = self._context.name(self._row["name"])
        kept = server.edit(wanted, self._sent)
        if kept:
            self._context.note(f"run {self._row['id']}: the server keeps its own {', '.join(kept)}")

    def _known_metrics(self) -> frozenset[Variant]:
        """Return the metrics whose points the server has already."""
        assert self._server is not None
        archived: dict[Variant, tuple[int, int | None, int | None]] = {}
        try:
            for table in self._folder.tables("metrics", self._file):
                for row in table.to_pylist():
                    key = (row["metric"], row["kind"], row["temporality"], row["monotonic"], row["unit"])
                    archived[key] = row["points"], row["last_time"], row["last_step"]
        except SourceError:
            return frozenset()  # reported when descriptions are read
        known = set()
        for metric in self._server.metrics():
            key = (metric["name"], metric["kind"], metric["temporality"], metric["monotonic"], metric["unit"])
            time = None if metric["last_time"] is None else int(metric["last_time"])
            if archived.get(key) == (metric["points"], time, metric["last_step"]):
                known.add(key)
        return frozenset(known)

    def _first_rows(self) -> FirstRows:
        if not self._resumed:
            return FirstRows()

        def tables() -> Iterator[Any]:
            yield from self._folder.tables("points", self._file)
            yield from self._folder.tables("distributions", self._file)

        try:
            return find_first_rows(tables(), self._resumed)
        except SourceError:
            return FirstRows()  # reported when the table is sent

    def _send_first_rows(self, first: FirstRows, known: frozenset[Variant]) -> None:
        """Send the points with the lowest steps of resumed attempts, each with its step."""
        requests = {}
        for process, steps in first.by_process(known).items():
            requests[process] = PointRequests(self._context.sender, self._resources)
            times = np.array(sorted(steps), np.int64)
            values = np.array([steps[time] for time in times.tolist()], np.int64)
            requests[process].add(process, Gauge(STEP_METRIC, times.view(np.uint64), values))
        if not requests:
            return
        for stretch, columns in self._stretches(self._folder.tables("points", self._file)):
            key = stretch.key
            if key.process in requests and key.variant not in known and key.metric != STEP_METRIC:
                chosen = np.flatnonzero(first.mask(stretch))
                for series in columns.series(stretch, chosen, self._description(key)) if len(chosen) else ():
                    requests[key.process].add(key.process, series)
        for stretch, rows in self._distributions(self._folder.tables("distributions", self._file)):
            key = stretch.key
            if key.process in requests and key.variant not in known:
                chosen_rows = [
                    row for row, is_first in zip(rows(), first.mask(stretch).tolist(), strict=True) if is_first
                ]
                for distribution in distribution_series(key, chosen_rows, self._description(key)):
                    requests[key.process].add(key.process, distribution)
        for of_process in requests.values():
            of_process.flush()

    def _send_points(self, first: FirstRows, known: frozenset[Variant]) -> None:
        """Send all other points. In the table, steps precede the points that they belong to."""
        requests = PointRequests(self._context.sender, self._resources)
        gaps: list[tuple[SeriesKey, NDArray[np.int64]]] = []
        for stretch, columns in self._stretches(self._tables("points")):
            key = stretch.key
            if key.variant in known:
                continue
            description = self._description(key)
            rest = np.flatnonzero(~first.mask(stretch))
            for begin in range(0, len(rest), _SLICE):
                for series in columns.series(stretch, rest[begin : begin + _SLICE], description):
                    requests.add(key.process, series)
            missing = columns.gaps(stretch)
            if len(missing):
                gaps.append((key, missing))
            if key.metric != STEP_METRIC:
                self._context.tally.points += len(stretch.time) - len(missing)
        requests.flush()
        for key, times in gaps:
            for series in _gap_series(key, times, self._description(key)):
                requests.add_gaps(key.process, series)

    def _send_distributions(self, first: FirstRows, known: frozenset[Variant]) -> None:
        requests = PointRequests(self._context.sender, self._resources)
        for stretch, rows in self._distributions(self._tables("distributions")):
            if stretch.key.variant in known:
                continue
            rest = [row for row, is_first in zip(rows(), first.mask(stretch).tolist(), strict=True) if not is_first]
            for series in distribution_series(stretch.key, rest, self._description(stretch.key)):
                requests.add(stretch.key.process, series)
            self._context.tally.points += len(stretch.time)
        requests.flush()

    def _stretches(self, tables: Iterable[Any]) -> Iterator[tuple[Stretch, PointColumns]]:
        for table in tables:
            columns = PointColumns(table)
            for stretch in stretches_of(table):
                if stretch.key.process in self._resources:
                    yield stretch, columns
                else:
                    self._report(f"points: left out those of the unknown process {stretch.key.process!r}")

    def _distributions(self, tables: Iterable[Any]) -> Iterator[tuple[Stretch, Callable[[], list[dict[str, Any]]]]]:
        for table in tables:
            for stretch in stretches_of(table):
                if stretch.key.process in self._resources:
                    rows = stretch.rows
                    part = table.slice(rows.start, rows.stop - rows.start)
                    yield stretch, part.to_pylist
                else:
                    self._report(f"distributions: left out those of the unknown process {stretch.key.process!r}")

    def _description(self, key: SeriesKey) -> str:
        if not self._descriptions:
            self._descriptions[("", "", None, None, "")] = ""  # read
            try:
                for table in self._folder.tables("metrics", self._file):
                    for row in table.to_pylist():
                        if row["description"]:
                            variant = (row["metric"], row["kind"], row["temporality"], row["monotonic"], row["unit"])
                            self._descriptions[variant] = row["description"]
            except SourceError as error:
                self._report(f"{error}; metrics have no descriptions")
        return self._descriptions.get(key.variant, "")

    def _restore_losses(self, server: ServerRun) -> None:
        """Send the losses of processes that have reported them in heartbeats only."""
        if not any(self._losses.values()):
            return
        self._context.sender.flush()
        stored = server.processes()
        for process, losses in self._losses.items():
            present = stored.get(process, {})
            counts = {reason: n for reason, n in losses.items() if isinstance(n, int)}
            if any(n > present.get(reason, 0) for reason, n in counts.items()):
                dropped = {reason: max(n, present.get(reason, 0)) for reason, n in {**present, **counts}.items()}
                self._heartbeat(self._resources[process], {"dropped": dropped})

    def _heartbeat(self, resource: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        try:
            request = encode_events(resource, [Event(RUN_HEARTBEAT, self._row["started"] or 1, body)])
        except INVALID as error:
            raise SourceError(f"the resource of a process cannot be sent ({error})") from None
        self._context.sender.send("logs", request, 1)


_SLICE: Final = 50_000
"""Maximum number of points of a series in one request."""


def _gap_series(key: SeriesKey, times: Any, description: str) -> Iterator[Gauge | Sum]:
    """Yield a series with NaN at the times of gaps."""
    fields = key.fields(description)
    moments, values = times.view(np.uint64), np.full(len(times), np.nan)
    if key.kind == "gauge":
        yield Gauge(key.metric, moments, values, **fields)
    else:
        starts = np.zeros(len(times), np.uint64)
        yield Sum(
            key.metric, moments, values, starts, monotonic=bool(key.monotonic), temporality=key.period(), **fields
        )
