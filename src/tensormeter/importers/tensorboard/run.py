"""One run of TensorBoard: the event files of a folder."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from tensormeter.importers.bounded_parsing import parse_message
from tensormeter.importers.registry import ImportContext
from tensormeter.importers.tensorboard.messages import SESSION_START, Event, Value, text_of
from tensormeter.importers.tensorboard.record_file import RecordBlock, read_blocks
from tensormeter.importers.tensorboard.scalars import NumberBlock, ScalarReader, Scalars, wall_nanoseconds
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
        self._scalars = ScalarReader()
        self._numbers = NumberBlock(self._requests)
        self._values = EventValues(self._requests, context.tally, run.label)
        self._run_id = ""
        self._attempt = 0
        self._last_step = -1
        self._last_time = 1
        """Latest valid time in nanoseconds since the Unix epoch."""

    def read(self) -> None:
        tally = self._context.tally
        for file in self._run.files:
            for block in read_blocks(file, advance=self._context.advance, damage=tally.report):
                self._read_block(block)
        if self._attempt:
            self._numbers.flush()
            self._requests.finish("finished", self._last_time)

    def _read_block(self, block: RecordBlock) -> None:
        if not self._attempt:
            first = self._parse(block.record(0))
            wall_time = 0.0 if first is None else first.wall_time
            self._run_id = self._run.run_id(wall_time)
            self._start(wall_time)
        scalars = self._scalars.read(block)
        sent = 0
        for index in scalars.others:
            event = self._parse(block.record(index))
            if event is None:
                self._context.tally.leave_out("damaged events")
            elif event.HasField("session_log"):
                end = int(np.searchsorted(scalars.records, index))
                self._send(scalars, sent, end)
                sent = end
                if event.session_log.status == SESSION_START and event.step <= self._last_step:
                    self._restart(event.wall_time)
            else:
                self._add(event)
        self._send(scalars, sent, len(scalars.records))

    def _send(self, scalars: Scalars, begin: int, end: int) -> None:
        if begin < end:
            self._last_step = max(self._last_step, int(scalars.steps[begin:end].max()))
            self._last_time = max(self._last_time, int(wall_nanoseconds(scalars.wall_times[begin:end]).max()))
            self._scalars.send(self._requests, scalars, begin, end)

    def _parse(self, record: bytes) -> Any:
        try:
            return parse_message(Event, record)
        except DecodeError:
            return None

    def _start(self, wall_time: float) -> None:
        self._attempt += 1
        matched = _FILE_NAME.fullmatch(self._run.files[0].name)
        host = matched[2].split(".")[0] if matched else ""
        self._requests.start(
            self._context.project(),
            self._run_id,
            self._context.name(self._run.name),
            started=int(wall_nanoseconds(wall_time)),
            resource={"tensormeter.imported_from": "tensorboard", **({"host.name": host} if host else {})},
            attempt=self._attempt,
            counted=self._attempt == 1,
        )

    def _restart(self, wall_time: float) -> None:
        self._numbers.flush()
        self._requests.finish("preempted", self._last_time, "a later start of the run follows in the event files")
        self._start(wall_time)

    def _add(self, event: Any) -> None:
        """Add an event that is not a plain scalar."""
        tally = self._context.tally
        time = int(wall_nanoseconds(event.wall_time))
        self._last_time = max(self._last_time, time)
        if event.summary.value:
            self._last_step = max(self._last_step, event.step)
        for data in event.summary.value:
            try:
                value = parse_message(Value, data)
            except DecodeError:
                tally.leave_out("damaged values in event files")
                continue
            number = value.simple_value if value.HasField("simple_value") else self._values.add(value, event.step, time)
            if number is not None:
                self._numbers.add(text_of(value.tag), event.step, event.wall_time, number)
        if event.graph_def or event.meta_graph_def:
            tally.leave_out("graphs")
        if event.tagged_run_metadata:
            tally.leave_out("profiles")
        if event.HasField("log_message"):
            self._requests.log(time, 9, text_of(event.log_message.message))
