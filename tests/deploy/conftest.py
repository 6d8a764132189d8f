"""Processes that the deployment files start."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3

from support.processes import clean_environment
from support.waiting import wait_for


@pytest.fixture(name="clean_environment")
def environment_without_collectors() -> dict[str, str]:
    return clean_environment("TENSORMETER_", "OTEL_", "OTELCOL_")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts programs with their output in a file, and stops them at the end."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (tmp_path / f"log-{len(processes)}").open("wb") as log:
            process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(300)


@pytest.fixture
def answers(tmp_path: Path) -> Callable[..., None]:
    """Waits until a URL answers 200."""

    def answers(process: subprocess.Popen[bytes], url: str, headers: dict[str, str] | None = None) -> None:
        def is_answered() -> bool:
            assert process.poll() is None, "\n".join(path.read_text() for path in sorted(tmp_path.glob("log-*")))
            try:
                return urllib3.request("GET", url, headers=headers, retries=False, timeout=10).status == 200
            except urllib3.exceptions.HTTPError:
                return False

        wait_for(is_answered, f"{url} answers")

    return answers
