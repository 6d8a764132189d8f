"""Import of one run of trackio."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from tensormeter.importers.artifact_records import artifact_record
from tensormeter.importers.registry import ImportContext, SourceError
from tensormeter.importers.repeated_texts import RepeatedTexts
from tensormeter.importers.run_requests import Numbers
from tensormeter.importers.trackio.media import RunMedia
from tensormeter.importers.trackio.store import NOT_FINITE, LoggedRow, ProjectStore, RecordedRun, nanoseconds

__all__ = ["RunImport"]

_MOST_VALUES: Final = 50_000
_MOST_ROWS: Final = 50_000
_DEEPEST: Final = 32
_LONGEST_INTEGER: Final = 1024
"""Bits of an integer that a float cannot represent."""

_SYSTEM: Final = "system/"
_APART: Final = 999
"""Nanoseconds that are added to times without a step, so that they differ from those of steps. Microseconds stay the same."""


class RunImport:
    """Import of one run of a project."""

    def __init__(self, store: ProjectStore, run: RecordedRun, path: Path, context: ImportContext) -> None:
        """
        Args:
            store: The project.
            run: The run.
            path: File of the project. Its name is that of the project.
            context: The import.
        """
        self._store = store
        self._run = run
        self._path = path
        self._context = context
        self._tally = context.tally
        self._requests = context.run()
        self._texts = RepeatedTexts(self._requests)
        self._media = RunMedia(self._requests, self._tally, path.parent / "media")
        self._columns: dict[str, tuple[list[int], list[Any]]] = {}
        """Rows and values of the metrics of a block."""
        self._first = self._last = 0

    def send(self) -> None:
        """Send the run. Rows that cannot be read are reported.

        Raises:
            TensormeterError: The requests could not be sent.
        """
        run = self._run
        own = {key: value for key, value in run.config.items() if key.startswith("_")}
        user = own.get("_Username")
        rows = self._readable(self._store.rows(run))
        first = next(rows, None)
        started = nanoseconds(own.get("_Created")) or (first.time if first is not None else 1)
        self._last = started
        self._requests.start(
            self._context.project(self._path.stem),
            run.run_id,
            self._context.name(run.name),
            started=started,
            config={key: value for key, value in run.config.items() if not key.startswith("_")},
            group=str(own.get("_Group") or ""),
            resource={"process.owner": user} if isinstance(user, str) and user else {},
        )
        self._rows([] if first is None else chain([first], rows), has_steps=True)
        self._rows(self._readable(self._store.system_rows(run)), has_steps=False)
        self._texts.flush()
        self._records()
        self._requests.finish("finished", self._last)

    def _readable(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield items until the store cannot be read any further."""
        try:
            yield from items
        except SourceError as error:
            self._tally.report(f"run {self._run.name}: cannot read everything; the rest was imported: {error}")

    def _rows(self, rows: Iterable[LoggedRow], *, has_steps: bool) -> None:
        steps: list[int] = []
        times: list[int] = []
        values = size = 0
        for row in rows:
            values += self._values("" if has_steps else _SYSTEM, row.values, row, len(times), 0)
            times.append(row.time)
            steps.append(row.step or 0)
            size += row.size
            if values >= _MOST_VALUES or len(times) >= _MOST_ROWS:
                self._points(steps if has_steps else None, times)
                self._context.advance(size)
                steps, times, values, size = [], [], 0, 0
        self._points(steps if has_steps else None, times)
        self._context.advance(size)

    def _points(self, steps: list[int] | None, times: list[int]) -> None:
        if not times:
            return
        self._last = max(self._last, *times)
        placed = np.array(times, np.int64)
        if steps is None:
            placed += _APART
        else:
            placed = self._requests.place(np.array(steps, np.int64), placed)
        for name, (rows, values) in self._columns.items():
            if rows:
                chosen = placed if len(rows) == len(times) else placed[rows]
                self._requests.placed_points(name, chosen, _numbers(values))
        self._columns = {name: ([], []) for name in self._columns}

    def _values(self, prefix: str, values: Mapping[str, Any], row: LoggedRow, index: int, depth: int) -> int:
        """Add the values of a row, and return the number of points."""
        points = 0
        for name, value in values.items():
            key = f"{prefix}{name}"
            number = NOT_FINITE.get(value) if isinstance(value, str) else value
            if isinstance(number, float) or (isinstance(number, int) and number.bit_length() < _LONGEST_INTEGER):
                rows, numbers = self._columns.setdefault(key, ([], []))
                if not rows or rows[-1] != index:
                    rows.append(index)
                    numbers.append(number)
                    points += 1
            elif isinstance(value, str):
                self._texts.add(key, row.step, row.time, value)
            elif isinstance(value, Mapping) and "_type" in value:
                self._media.add(key, row.step, row.time, value)
            elif isinstance(value, Mapping) and depth < _DEEPEST:
                points += self._values(f"{key}/", value, row, index, depth + 1)
            elif isinstance(value, list):
                self._media.add_list(key, row.step, row.time, value)
            elif value is not None:
                self._tally.leave_out("values of unknown types")
        return points

    def _records(self) -> None:
        for alert in self._readable(self._store.alerts(self._run)):
            level = alert.level if alert.level in ("INFO", "WARN", "ERROR") else "INFO"
            self._requests.item("alert", alert.title, alert.step, alert.time, text=alert.text, level=level)
        for artifact in self._readable(self._store.artifacts(self._run)):
            self._requests.event(
                artifact_record(
                    artifact.name,
                    str(self._path.parent / "artifacts" / self._path.stem),
                    artifact.time,
                    kind=artifact.kind,
                    size=artifact.size,
                    files=artifact.files,
                    aliases=[f"v{artifact.version}", *artifact.aliases],
                )
            )
            self._tally.leave_out("contents of artifacts, which are recorded by their place")


def _numbers(values: list[Any]) -> Numbers:
    """Return values as int64 if all are integers of 64 bits, and otherwise as float64. Booleans are 0 and 1."""
    if all(isinstance(value, int) for value in values):
        try:
            return np.array(values, np.int64)
        except OverflowError:
            pass
    return np.array([float(value) for value in values], np.float64)
