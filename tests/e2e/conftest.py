"""Places and servers for whole training runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import clean_environment
from support.servers import RestartableServer


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of every process of a test: nothing of the user's own, and nothing left in shared memory."""
    buffers = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    folder = buffers / f"tensormeter-test-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield clean_environment() | {
        "TENSORMETER_DIR": str(tmp_path / "runs"),
        "TENSORMETER_BUFFER_DIR": str(folder),
        "TENSORMETER_SCHEDULE_DELAY": "0.2",
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_CONSOLE": "off",
        "TENSORMETER_SELF_METRICS_INTERVAL": "0",
        "OMP_NUM_THREADS": "1",
    }
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.fixture
def server(tmp_path: Path, environment: dict[str, str]) -> Iterator[RestartableServer]:
    """A server that is not started yet; the environment points at it."""
    server = RestartableServer(tmp_path, environment)
    environment["TENSORMETER_ENDPOINT"] = server.url
    yield server
    server.stop()
