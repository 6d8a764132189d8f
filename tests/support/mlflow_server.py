"""A real MLflow tracking server."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import urllib3

from support.ports import reserve_port
from support.processes import clean_environment
from support.waiting import wait_for


@contextlib.contextmanager
def serve_mlflow(folder: Path, *options: str) -> Iterator[str]:
    """Run an MLflow server, and yield its address.

    Args:
        folder: Working directory, which gets the server's log.
        options: Options of ``mlflow server``, such as the stores.
    """
    port = reserve_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *options]
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=clean_environment() | environment,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    http = urllib3.PoolManager(retries=False, timeout=10)

    def healthy() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return http.request("GET", f"http://127.0.0.1:{port}/health").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    try:
        wait_for(healthy, "MLflow serves")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(300)
