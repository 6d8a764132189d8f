"""A real server process with sample runs, and the path of the browser."""

import shutil
from collections.abc import Callable
from pathlib import Path

import urllib3

from support.processes import clean_environment
from support.servers import ServerProcess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Tests run as root in containers, where Chromium's sandbox cannot start and /dev/shm may be small.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars", "--disable-gpu"]

FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Script that waits until pending changes are drawn."""

ALERTS = "defaults = false"
"""Alert rules: none. Alerts of the server would appear during a test and move elements away from the pointer."""


class LiveServer(ServerProcess):
    """A `tensormeter serve` process without alerts."""

    def __init__(self, folder: Path, token: str | None = None) -> None:
        environment = clean_environment() | {"TENSORMETER_DIR": str(folder / "runs")}
        self._headers = {"Content-Type": "application/x-protobuf"}
        if token is not None:
            environment["TENSORMETER_TOKEN"] = token
            self._headers["Authorization"] = f"Bearer {token}"
        alerts = folder / "alerts.toml"
        folder.mkdir(parents=True, exist_ok=True)
        alerts.write_text(ALERTS)
        super().__init__(folder / "server", "--alerts", str(alerts), environment=environment)

    def post(self, path: str, body: bytes) -> None:
        response = self.http.request("POST", f"{self.url}{path}", body=body, headers=self._headers)
        assert response.status == 200, response.data

    def get(self, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.http.request("GET", f"{self.url}{path}", headers=named)


def sample_server(folder: Path, *sends: Callable[[Callable[[str, bytes], None]], None]) -> LiveServer:
    """Start a server, and send it the sample runs of all `sends`."""
    server = LiveServer(folder)
    for send in sends:
        send(server.post)
    return server
