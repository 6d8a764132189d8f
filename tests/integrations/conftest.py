"""A server that the runs of all tests of a module go to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import clean_environment
from support.servers import Server
from support.waiting import wait_for
from tensormeter import Client
from tensormeter.client.run import StoredRun


class Experiment:
    """A server, and the environment of processes whose runs go to it.

    Attributes:
        client: Client of the server.
        environment: Environment of processes that record.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.client = Client(server.url)
        self.settings = {
            "TENSORMETER_ENDPOINT": server.url,
            "TENSORMETER_DIR": str(folder / "state"),
            "TENSORMETER_BUFFER_DIR": str(folder / "rings"),
            "TENSORMETER_SCHEDULE_DELAY": "0.05",
            "TENSORMETER_SAMPLE_INTERVAL": "0",
            "TENSORMETER_SELF_METRICS_INTERVAL": "0",
            "TENSORMETER_CONSOLE": "off",
        }
        self.environment = {**clean_environment(), **self.settings, "OMP_NUM_THREADS": "1"}

    def runs(self, project: str, count: int) -> list[StoredRun]:
        """The runs of a project, by name, once there are so many and all have ended."""

        def ended() -> list[StoredRun]:
            runs = sorted(self.client.runs(project), key=lambda run: run.name)
            return runs if len(runs) >= count and all(run.ended for run in runs) else []

        runs = wait_for(ended, f"{count} runs of {project} have ended", 60)
        assert len(runs) == count
        return [run.refresh() for run in runs]

    def points(self, run: StoredRun, metric: str) -> list[tuple[int, float]]:
        """Steps and values of a metric of a run, of all processes in order."""
        lines = run.series(metric, max_points=0)
        return [(int(x), float(y)) for line in lines for x, y in zip(line.x, line.y, strict=True)]

    def last(self, run: StoredRun, name: str) -> object:
        """The value that represents a metric, or an entry of the summary that the script has set."""
        return run.summary[name].value


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    folder = tmp_path_factory.mktemp("experiment")
    server = Server(folder / "server", environment={"TENSORMETER_QUIET": "1"})
    experiment = Experiment(server, folder)
    yield experiment
    experiment.client.close()
    server.stop()


@pytest.fixture
def recorded(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The server, for runs of this process."""
    for name in [name for name in os.environ if name.startswith("TENSORMETER_") and name not in experiment.settings]:
        if name not in ("TENSORMETER_QUIET", "TENSORMETER_RECORD_CODE"):
            monkeypatch.delenv(name)
    for name, value in experiment.settings.items():
        monkeypatch.setenv(name, value)
    return experiment
