"""One run of TensorBoard: the event files of a folder."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from tensormeter.conventions.limits import METRIC_NAMES
from tensormeter.importers.registry import ImportContext
from tensormeter.importers.tensorboard.messages import SESSION_START, Event, Value
from tensormeter.importers.tensorboard.record_file import read_records
from tensormeter.importers.tensorboard.scalars import ScalarBlock, ScalarColumn, wall_nanoseconds
from tensormeter.importers.tensorboard.values import EventValues

__all__ = ["TensorBoardRun"]

_FILE_NAME: Final = re.compile(r"events\.out\.tfevents\.(\d+)\.(.*)", re.DOTALL)


@dataclass(frozen=True)
class TensorBoardRun:
    """The event files of one folder.

    Attributes:
        name: Path of the folder relative to the log directory.
        files: Paths of the event files, in the order in which TensorBoard reads them.
    """

    name: str
    files: tuple[Path, ...]

    @property
    def label(self) -> str:
        return str(self.files[0].parent)

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def send(self, context: ImportContext) -> None:
        """Send the run. See `registry.RunSource`."""
        _Reader(self, context).read()

    def run_id(self, started: float) -> str:
        """Return an ID that stays the same if the folder is moved: it depends on the folder's name and the first event."""
        identity = f"{self.files[0].name}\0{started!r}\0{self.name.rpartition('/')[2]}"
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-._")[:80]
        return f"{readable}-{hashlib.sha256(identity.encode('utf-8', 'replace')).hexdigest()[:8]}".lstrip("-")


class _Reader:
    """Reader of one run. Each start after the first becomes an attempt, which shadows the steps that it repeats."""

    def __init__(self, run: TensorBoardRun, context: ImportContext) -> None:
        self._run = run
        self._context = context
        self._requests = context.run()
        self._block = ScalarBlock(self._requests)
        self._values = EventValues(self._requests, context.tally, run.label)
        self._columns: dict[bytes, ScalarColumn] = {}
        """Column by the encoded value without the number."""
        self._run_id = ""
        self._attempt = 0
        self._last_step = -1
        self._last_time = 0.0

    def read(self) -> None:
        for event in self._events():
            if not self._attempt:
                self._run_id = self._run.run_id(event.wall_time)
                self._start(event.wall_time)
            self._last_time = max(self._last_time, event.wall_time)
            values = event.summary.value
            if values:
                self._add(event, values)
            elif event.HasField("session_log"):
                if event.session_log.status == SESSION_START and event.step <= self._last_step:
                    self._restart(event.wall_time)
            elif event.graph_def or event.meta_graph_def:
                self._context.tally.leave_out("graphs")
            elif event.tagged_run_metadata:
                self._context.tally.leave_out("profiles")
            elif event.HasField("log_message"):
                time = int(wall_nanoseconds([event.wall_time])[0])
                self._requests.log(time, 9, event.log_message.message)
        if self._attempt:
            self._block.flush()
            self._requests.finish("finished", int(wall_nanoseconds([self._last_time])[0]))

    def _events(self) -> Iterator[Any]:
        tally = self._context.tally
        for file in self._run.files:
            for data in read_records(file, advance=self._context.advance, damage=tally.report):
                try:
                    yield Event.FromString(data)
                except DecodeError:
                    tally.leave_out("damaged events")

    def _start(self, wall_time: float) -> None:
        self._attempt += 1
        matched = _FILE_NAME.fullmatch(self._run.files[0].name)
        host = matched[2].split(".")[0] if matched else ""
        self._requests.start(
            self._context.project(),
            self._run_id,
            self._context.name(self._run.name),
            started=int(wall_nanoseconds([wall_time])[0]),
            resource={"tensormeter.imported_from": "tensorboard", **({"host.name": host} if host else {})},
            attempt=self._attempt,
            counted=self._attempt == 1,
        )

    def _restart(self, wall_time: float) -> None:
        self._block.flush()
        self._requests.finish(
            "preempted",
            int(wall_nanoseconds([self._last_time])[0]),
            "a later start of the run follows in the event files",
        )
        self._start(wall_time)

    def _add(self, event: Any, values: Any) -> None:
        step, wall_time = event.step, event.wall_time
        row = self._block.row
        self._last_step = max(self._last_step, step)
        scalars = False
        for data in values:
            column = self._columns.get(data[:-4])
            if column is not None:
                column.rows.append(row)
                column.packed.append(data[-4:])
                scalars = True
            else:
                scalars |= self._add_other(data, step, wall_time, row)
        if scalars:
            self._block.end_row(step, wall_time)

    def _add_other(self, data: bytes, step: int, wall_time: float, row: int) -> bool:
        """Add a value that is not a scalar of a known tag. Return whether it is a scalar."""
        try:
            value = Value.FromString(data)
            tag = value.tag
        except (DecodeError, UnicodeDecodeError):
            self._context.tally.leave_out("damaged values in event files")
            return False
        is_simple = value.HasField("simple_value")
        number = (
            value.simple_value if is_simple else self._values.add(value, step, int(wall_nanoseconds([wall_time])[0]))
        )
        if number is None:
            return False
        if len(self._block) >= METRIC_NAMES:
            self._context.tally.leave_out(f"points of metrics beyond the limit of {METRIC_NAMES:,} metrics")
            return False
        column = self._block.column(tag)
        if is_simple and Value(tag=tag, simple_value=number).SerializeToString() == data:
            self._columns[data[:-4]] = column
        column.rows_of_numbers.append(row)
        column.numbers.append(number)
        return True
