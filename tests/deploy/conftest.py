"""Processes that the deployment files start."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3


@pytest.fixture
def free_port() -> Callable[[], int]:
    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return free_port


@pytest.fixture
def clean_environment() -> dict[str, str]:
    prefixes = ("TENSORMETER_", "OTEL_", "OTELCOL_")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts programs with their output in a file, and stops them at the end."""
    started = []

    def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (tmp_path / f"log-{len(started)}").open("wb") as log:
            process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(300)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds."""

    def eventually(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            threading.Event().wait(0.05)

    return eventually


@pytest.fixture
def answers(tmp_path: Path) -> Callable[..., None]:
    """Waits until a URL answers 200."""

    def answers(process: subprocess.Popen[bytes], url: str, headers: dict[str, str] | None = None) -> None:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, "\n".join(path.read_text() for path in sorted(tmp_path.glob("log-*")))
            try:
                if urllib3.request("GET", url, headers=headers, retries=False, timeout=10).status == 200:
                    return
            except urllib3.exceptions.HTTPError:
                pass
            assert time.monotonic() < deadline, f"{url} does not answer"
            threading.Event().wait(0.05)

    return answers
