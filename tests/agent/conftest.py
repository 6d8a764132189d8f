"""Rings to feed a receiver from."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.agent.spool.spool import Spool
from tensormeter.record.recorder import Recorder
from tensormeter.ring.file import RingFile
from tensormeter.settings import Settings


@dataclass
class Source:
    """A ring of this process, with its recorder."""

    ring: RingFile
    recorder: Recorder
    log: Callable[..., None] = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.recorder.log

    @property
    def path(self) -> Path:
        return self.ring.path


@pytest.fixture
def new_source(tmp_path: Path) -> Iterator[Callable[..., Source]]:
    """Makes rings with recorders; the options are those of `RingFile.create`."""
    numbers = itertools.count()
    sources: list[Source] = []
    folder = tmp_path / "sources"
    folder.mkdir()

    def create(metadata: dict | None = None, **options: int) -> Source:
        path = folder / f"{os.getpid()}-{next(numbers)}.ring"
        ring = RingFile.create(path, metadata or {}, **{"buffer_bytes": 1 << 20, **options})
        sources.append(Source(ring, Recorder(ring, on_writer=lambda writer: None)))
        return sources[-1]

    yield create
    for source in sources:
        source.ring.release()


@pytest.fixture
def open_drain(spool: Spool) -> Callable[..., RingDrainer]:
    """Opens drains from sources into the spool, for the destination `a`. Options are settings."""

    def open_drain(source: Source, **settings: Any) -> RingDrainer:
        resolved = Settings(**{"schedule_delay": 3600, "self_metrics_interval": 0, **settings})
        return RingDrainer(RingFile.open(source.path), spool, ("a",), resolved)

    return open_drain


@pytest.fixture
def source(new_source: Callable[..., Source]) -> Source:
    return new_source()
