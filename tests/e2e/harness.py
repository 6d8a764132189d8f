"""A real server process, a real training process, and the comparison of what went in with what came out."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import urllib3

ROOT = Path(__file__).parents[2]

Points = Counter[tuple[str, int, str]]
"""How often each (metric, step, value) is there. Values as hexadecimal floats, so that equal means every bit."""


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait until a condition holds, and fail with its name if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`tensormeter serve` as a process, on a data folder and a port that stay the same over restarts."""

    def __init__(self, folder: Path, environment: dict[str, str], port: int | None = None) -> None:
        self._data = folder / "server"
        self._port = port or free_port()
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._pool = urllib3.PoolManager(retries=False, timeout=300)
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tensormeter", "serve", "--port", str(self._port), "--data", str(self._data)]
        self._process = subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self.url in self._process.stdout.readline()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._end()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait(300)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        self._pool.clear()

    def get(self, path: str, **query: str) -> dict:
        response = self._pool.request("GET", f"{self.url}/api/v1{path}", fields=query)
        return json.loads(response.data) if response.status == 200 else {}

    def state(self, run_id: str) -> str | None:
        return self.get(f"/runs/{run_id}").get("state")

    def points(self, run_id: str, *prefixes: str) -> Points:
        """Everything that the API returns of a run, but for the steps themselves; of these metrics only, if there are prefixes."""
        found: Points = Counter()
        metrics = {metric["name"] for metric in self.get(f"/runs/{run_id}/metrics").get("metrics", [])}
        for metric in metrics - {"tensormeter.step"}:
            if not metric.startswith(prefixes or ("",)):
                continue
            for series in self.get(f"/runs/{run_id}/series", metric=metric, x="step")["series"]:
                found.update(
                    (metric, step, float(value).hex())
                    for step, value in zip(series["step"], series["value"], strict=True)
                )
        return found


def recorded(path: Path) -> Points:
    """What the training script kept aside."""
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return Counter((metric, int(step), float.fromhex(value).hex()) for metric, step, value in rows)
