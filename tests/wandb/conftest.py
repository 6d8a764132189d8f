"""A real server, and runs that agents in threads deliver to it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensormeter
from support.servers import Server
from tensormeter.client import Client
from tensormeter.client.run import StoredRun
from tensormeter.session import open_runs
from tensormeter.wandb import current, notices
from tensormeter.wandb.functions import setup


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("wandb") / "data")
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the test, which is the working folder, and a fresh module. Runs that the test has left are finished."""
    import os

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    variables = {"DIR": "state", "BUFFER_DIR": "rings", "AGENT": "thread", "SCHEDULE_DELAY": "0.05", "MODE": "offline"}
    for name, value in variables.items():
        monkeypatch.setenv(f"TENSORMETER_{name}", str(tmp_path / value) if "DIR" in name else value)
    (tmp_path / "rings").mkdir()
    monkeypatch.chdir(tmp_path)
    notices._notices._warned.clear()
    yield tmp_path
    for run in open_runs.all_open():
        run.finish(timeout=0)
    current.set_current(None)
    current.clear_config()
    setup().settings._values.clear()


@pytest.fixture
def online(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], StoredRun]:
    """Runs are delivered to a server. The fixture is a function that returns a finished run from it."""
    monkeypatch.setenv("TENSORMETER_ENDPOINT", server.url)
    monkeypatch.setenv("TENSORMETER_MODE", "online")
    client = Client(server.url)

    def stored(run_id: str) -> StoredRun:
        assert tensormeter.run is None or tensormeter.run.id != run_id, "the run has not finished"
        return client.run(run_id).refresh()

    return stored
