"""Providers over real rings, and what the agent makes of the rings: encoded, and decoded again."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tensormeter
from tensormeter import MeterProvider, Settings
from tensormeter.agent.ingest.aggregation import Aggregator
from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.instruments import registry
from tensormeter.otlp.batch import Series
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.ring.file import RingFile


class Measured:
    """A provider, its run, and the agent's view of what was measured."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        self.run = tensormeter.init(settings=settings)
        self.provider = MeterProvider(run=self.run, **options)
        self.meter = self.provider.get_meter("test")
        self.resource: dict[str, Any] = {}
        assert self.run._process is not None
        self.path = self.run._process.ring.path
        self.temporality = settings.temporality
        self.states: dict[str, str] = {}
        self._processor = self._open({})

    @property
    def recorder(self) -> Any:
        return self.run._process.recorder  # type: ignore[union-attr]

    @property
    def refused(self) -> int:
        """Values that the agent has refused."""
        return self._processor.refused

    def series(self, *, spooled: bool = True) -> list[Series]:
        """The series of a batch at this moment. With `spooled=False` the agent is killed before it is in the spool."""
        processor = self._processor
        while processor.poll(abandon_pending=False) and processor._points < processor._most:
            pass
        counted = self._processor.batch(self._processor.metadata["resource"])  # type: ignore[arg-type]
        if counted is None:
            return []
        batch, _ = counted
        if spooled:
            self.states.update(self._processor.aggregates)
            self._processor.release()
        else:
            self.kill_agent()
        (decoded,) = decode_metrics(encode_metrics([batch]))
        self.resource = dict(decoded.resource)
        return [series for series in decoded.series if series.name != "tensormeter.step"]

    def one(self, name: str) -> Any:
        """The only series of a batch that has one series of this name."""
        (series,) = [series for series in self.series() if series.name == name]
        return series

    def by_attributes(self) -> dict[tuple[tuple[str, Any], ...], Any]:
        return {tuple(sorted(series.attributes.items())): series for series in self.series()}

    def kill_agent(self) -> None:
        """Go on with another agent, which knows what is in the spool and in the ring."""
        self._processor = self._open(self.states)

    def _open(self, states: dict[str, str]) -> BatchMeasurementProcessor:
        return BatchMeasurementProcessor(
            RingFile.open(self.path),
            {},
            Aggregator(states, self.temporality),
            schedule_delay=1,
            max_export_batch_size=1_000_000,
        )


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    """Each test hears what is said once in a process."""
    registry._warned.clear()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a run without an agent."""
    return Settings(
        directory=tmp_path / "runs",
        buffer_directory=tmp_path / "rings",
        buffer_bytes=1 << 20,
        mode="offline",
        agent="off",
        observe_interval=3600,
    )


@pytest.fixture
def new_measured(settings: Settings) -> Iterator[Callable[..., Measured]]:
    """Makes providers; the options are those of `MeterProvider`, and `change` changes settings."""
    made: list[Measured] = []

    def create(change: dict[str, Any] | None = None, **options: Any) -> Measured:
        made.append(Measured(settings.replace(**(change or {})), **options))
        return made[-1]

    yield create
    for measured in made:
        measured.provider.shutdown(timeout_millis=0)
        measured.run.finish()


@pytest.fixture
def measured(new_measured: Callable[..., Measured]) -> Measured:
    return new_measured()


@pytest.fixture
def warnings_logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The messages of the logger `tensormeter`."""
    caplog.set_level(logging.WARNING, "tensormeter")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "tensormeter"]
