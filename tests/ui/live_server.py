"""A real server process with sample runs, and the path of the browser."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import urllib3

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Tests run as root in containers, where Chromium's sandbox cannot start and /dev/shm may be small.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars", "--disable-gpu"]

FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Script that waits until pending changes are drawn."""

ALERTS = "defaults = false"
"""Alert rules: none. Alerts of the server would appear during a test and move elements away from the pointer."""


class LiveServer:
    """A `tensormeter serve` process on a free port."""

    def __init__(self, folder: Path, token: str | None = None) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TENSORMETER_", "OTEL_"))}
        environment = inherited | {"TENSORMETER_DIR": str(folder / "runs")}
        if token is not None:
            environment["TENSORMETER_TOKEN"] = token
        alerts = folder / "alerts.toml"
        folder.mkdir(parents=True, exist_ok=True)
        alerts.write_text(ALERTS)
        command = [sys.executable, "-m", "tensormeter", "serve", "--port", "0", "--data", str(folder / "server")]
        command += ["--alerts", str(alerts)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert " on http" in line, line
        self.url = line.partition(" on ")[2].split()[0]
        self._http = urllib3.PoolManager(retries=False, timeout=300)
        self._headers = {"Content-Type": "application/x-protobuf"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def post(self, path: str, body: bytes) -> None:
        response = self._http.request("POST", f"{self.url}{path}", body=body, headers=self._headers)
        assert response.status == 200, response.data

    def get(self, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return self._http.request("GET", f"{self.url}{path}", headers=named)

    def stop(self) -> None:
        self._http.clear()
        self._process.terminate()
        self._process.wait(300)
        assert self._process.stdout is not None
        self._process.stdout.close()


def sample_server(folder: Path, *sends: Callable[[Callable[[str, bytes], None]], None]) -> LiveServer:
    """Start a server, and send it the sample runs of all `sends`."""
    server = LiveServer(folder)
    for send in sends:
        send(server.post)
    return server
