"""Real ring files: a recorder at one end, a reader of the file at the other."""

import logging
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from phases_rig import Clock

import tensormeter.record.phases.timeline as timeline_module
import tensormeter.record.rows.lane as lane_module
from support.read_rows import values_of_rows
from tensormeter.agent.ingest.lane_reader import LaneReader, Layouts
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.conventions.limits import METRIC_NAMES
from tensormeter.record.recorder import Limits, Recorder
from tensormeter.ring.file import RingFile


class Row(NamedTuple):
    lane: int
    time: int
    step: int
    values: dict[str, float | int | None]
    """By name; None where a device never finished."""


class Reader:
    """Reads a ring file as the agent does."""

    def __init__(self, path: Path) -> None:
        self.ring = RingFile.open(path)
        layouts = Layouts(self.ring)
        self._streams = layouts.streams
        self.lanes = [LaneReader(layouts, index, Cursor()) for index in range(len(self.ring.lanes))]

    def read(self, most: int = 1 << 40, *, abandon: bool = False) -> list[Row]:
        """The rows that are new, lane by lane."""
        new_rows = []
        for index, lane in enumerate(self.lanes):
            for rows in lane.read(most, abandon_pending=abandon):
                values = values_of_rows(rows, self._streams)
                for time, step, cells in zip(rows.times.tolist(), rows.steps.tolist(), values, strict=True):
                    new_rows.append(Row(index, time, step, cells))
        return new_rows

    def release(self) -> None:
        for lane in self.lanes:
            lane.release()


class Recording:
    """A recorder, called as a run calls it: through the writer for the keys in use."""

    def __init__(self, path: Path, *, metric_names: int = METRIC_NAMES, **options: Any) -> None:
        self.ring = RingFile.create(path, {}, **options)
        self.log: Callable[..., None]
        limits = Limits(metric_names)
        self.recorder = Recorder(self.ring, on_writer=lambda writer: setattr(self, "log", writer), limits=limits)
        self.reader = Reader(path)

    def rows(self, **options: Any) -> list[Row]:
        """The rows since the last call. Their space is given back."""
        new_rows = self.reader.read(**options)
        self.reader.release()
        return new_rows

    def values(self) -> list[dict[str, float | int | None]]:
        return [row.values for row in self.rows()]

    def dropped(self, reason: str) -> int:
        return self.ring.drops().get(reason, 0)


@pytest.fixture(scope="session")
def new_recording(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recording]:
    """Makes recordings, in a folder; the options are those of `RingFile.create`, and the limit `metric_names`. Usable under hypothesis."""
    folder = tmp_path_factory.mktemp("rings")
    numbers = count()

    def create(folder: Path = folder, **options: Any) -> Recording:
        path = folder / f"tensormeter-test-{os.getpid()}-{next(numbers)}.ring"
        recording = Recording(path, **{"buffer_bytes": 1 << 20, **options})
        recording.ring.remove()  # the mappings stay
        return recording

    return create


@pytest.fixture
def open_reader() -> Callable[[Path], Reader]:
    """Opens rings that runs have made."""
    return Reader


@pytest.fixture(scope="module", params=["C", "Python"])
def writers(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation of writers. Whole modules use it, so that all of their tests hold for both."""
    if request.param == "C" and not lane_module.native_writers():
        pytest.skip("the C writer could not be compiled")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "Python":
            patch.setattr(lane_module, "_writer", None)
        yield request.param


@pytest.fixture
def recording(new_recording: Callable[..., Recording]) -> Recording:
    return new_recording()


@pytest.fixture
def warnings_logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The messages of the logger `tensormeter`."""
    caplog.set_level(logging.DEBUG, "tensormeter")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "tensormeter"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of phases."""
    clock = Clock()
    monkeypatch.setattr(timeline_module, "perf_counter_ns", clock)
    return clock
