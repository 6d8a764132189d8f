"""Cost of wide rows: the agent's processor time and memory while several ranks log rows of many values each second.

``python benchmarks/wide_rows.py [--ranks 8] [--width 10000] [--seconds 20]``. The agent delivers to a receiver that reads and
accepts all requests, so that a server's speed does not matter.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
from delivery import console
from rich.table import Table

from tensormeter import Settings
from tensormeter.agent.run_directory.directory import list_runs

TRAINER = """
import json, random, sys, threading, time
import tensormeter
endpoint, folder, width, seconds, parent = json.loads(sys.argv[1])
settings = tensormeter.Settings(directory=folder, endpoint=endpoint, sample_interval=0)
run = tensormeter.init("bench", id=f"wide-{width}-{parent}", settings=settings)
names = [f"layer_{k // 50:05}/metric_{k % 50:02}/norm" for k in range(width)]
begun = time.monotonic()
for step in range(seconds):
    run.log({name: random.random() for name in names}, step)
    threading.Event().wait(max(0.0, begun + step + 1 - time.monotonic()))
run.finish(timeout=120)
"""

WARM_UP = 5
"""Seconds after which the measurement starts: interpreters have been started, and names have been read."""


class Receiver(BaseHTTPRequestHandler):
    """A receiver that accepts all requests, and counts the bytes of those with metrics."""

    protocol_version = "HTTP/1.1"
    received = 0

    def do_POST(self) -> None:
        size = len(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/metrics"):
            Receiver.received += size
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(404)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Accept-Encoding", "zstd, gzip")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def receiving() -> Iterator[str]:
    """Run a receiver, and yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Receiver.received = 0
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def agent_cost(ranks: int, width: int, seconds: int, folder: Path) -> tuple[float, float, float, float]:
    """Return the agent's share of a core, its maximum resident and unshared memory in MiB, and the bytes of bodies per point."""
    with receiving() as url:
        arguments = json.dumps([url, str(folder / "state"), width, WARM_UP + seconds, os.getpid()])
        trainers = [
            subprocess.Popen(
                [sys.executable, "-c", TRAINER, arguments],
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
                stderr=subprocess.DEVNULL,
            )
            for rank in range(ranks)
        ]
        settings = Settings(directory=folder / "state")
        while not list_runs(settings.directory) or (pid := list_runs(settings.directory)[0].agent_pid()) is None:
            threading.Event().wait(0.05)
        agent = psutil.Process(pid)
        threading.Event().wait(WARM_UP)
        begun, before, resident, unshared = time.monotonic(), sum(agent.cpu_times()[:2]), 0, 0
        while time.monotonic() - begun < seconds - 1:
            memory = agent.memory_full_info()
            resident, unshared = max(resident, memory.rss), max(unshared, memory.uss)
            threading.Event().wait(0.2)
        share = (sum(agent.cpu_times()[:2]) - before) / (time.monotonic() - begun)
        for trainer in trainers:
            trainer.wait(200)
        points = ranks * (WARM_UP + seconds) * (width + 1)
        return share, resident / (1 << 20), unshared / (1 << 20), Receiver.received / points


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--width", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=20)
    arguments = parser.parse_args()
    table = Table(title=f"The agent of {arguments.ranks} ranks that log one row per second")
    for column in ("values per row", "share of one core", "resident MiB", "unshared MiB", "bytes per point"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory(prefix="tensormeter-bench-") as name:
        for width in (max(1, arguments.width // 1000), arguments.width):
            cost = agent_cost(arguments.ranks, width, arguments.seconds, Path(name) / str(width))
            share, resident, unshared, sent = cost
            table.add_row(f"{width:,}", f"{share:.1%}", f"{resident:.0f}", f"{unshared:.0f}", f"{sent:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
