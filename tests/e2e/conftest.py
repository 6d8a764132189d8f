"""Places and servers for whole training runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Server


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of every process of a test: nothing of the user's own, and nothing left in shared memory."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TENSORMETER_", "OTEL_"))}
    buffers = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    folder = buffers / f"tensormeter-test-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield inherited | {
        "TENSORMETER_DIR": str(tmp_path / "runs"),
        "TENSORMETER_BUFFER_DIR": str(folder),
        "TENSORMETER_SCHEDULE_DELAY": "0.2",
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_SELF_METRICS_INTERVAL": "0",
        "OMP_NUM_THREADS": "1",
    }
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.fixture
def server(tmp_path: Path, environment: dict[str, str]) -> Iterator[Server]:
    """A server that is not started yet; the environment points at it."""
    server = Server(tmp_path, environment)
    environment["TENSORMETER_ENDPOINT"] = server.url
    yield server
    server.stop()
