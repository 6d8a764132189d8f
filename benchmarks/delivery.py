"""Cost of delivery: the agent's processor time and memory, its throughput, the latency of points, and bytes on the wire.

Run this benchmark on an otherwise idle machine: ``python benchmarks/delivery.py [--seconds 5]``
"""

import argparse
import contextlib
import gzip
import importlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import urllib3
from rich.console import Console
from rich.table import Table

import tensormeter
from tensormeter import Settings
from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.spool.spool import Spool
from tensormeter.record.recorder import Recorder
from tensormeter.ring.file import RingFile

RATES = (1_000, 10_000, 100_000, 1_000_000)
PER_ROW = 20
console = Console(width=110)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run a server on a free port, and yield its URL."""
    command = [sys.executable, "-m", "tensormeter", "serve", "--port", "0", "--data", str(folder / "server")]
    environment = os.environ | {"TENSORMETER_DIR": str(folder / "none")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[3]
    finally:
        process.terminate()
        process.wait(60)


def agent_at(rate: int, seconds: float, folder: Path) -> tuple[float, float, float]:
    """Log at the given rate in an offline run.

    Return the logged points per second, the share of a core that the agent used, and its maximum resident memory in MiB.
    """
    settings = Settings(directory=folder / f"state-{rate}", mode="offline", buffer_bytes=64 << 20)
    run = tensormeter.init("bench", settings=settings)
    names = [f"metric/{k}" for k in range(PER_ROW)]
    (directory,) = list_runs(settings.directory)
    while directory.agent_pid() is None:
        threading.Event().wait(0.01)
    agent = psutil.Process(directory.agent_pid())
    before, begun, logged, most = sum(agent.cpu_times()[:2]), time.monotonic(), 0, 0
    row = dict.fromkeys(names, 0.0)
    while (elapsed := time.monotonic() - begun) < seconds:
        for _ in range(int(rate * elapsed / PER_ROW) - logged):
            row[names[0]] = logged * 0.5
            run.log(row, logged)
            logged += 1
        most = max(most, agent.memory_info().rss)
        threading.Event().wait(0.005)
    used = sum(agent.cpu_times()[:2]) - before
    elapsed = time.monotonic() - begun
    run.finish()
    return logged * PER_ROW / elapsed, used / elapsed, most / (1 << 20)


def ring_to_spool(folder: Path) -> float:
    """Return the points per second that one core can encode and move from the ring to the spool on disk."""
    ring = RingFile.create(folder / "bench.ring", {}, buffer_bytes=128 << 20)
    recorder = Recorder(ring, on_writer=lambda writer: None)
    row = {f"metric/{k}": k * 0.1 for k in range(PER_ROW)}
    rows = 200_000
    for step in range(rows):
        recorder.log(row, step)
    spool = Spool(folder / "bench.sqlite", max_bytes=1 << 30)
    drain = RingDrainer(RingFile.open(ring.path), spool, ["experiment"], Settings(schedule_delay=3600))
    begun = time.process_time()
    drain.advance(flush=True)
    took = time.process_time() - begun
    items = spool.pending_items()
    spool.close()
    ring.release()
    return items / took


def latency(folder: Path, rows: int) -> tuple[float, float]:
    """Return p50 and p99 of the seconds from a `log` call until the API returns the point, with default settings."""
    with serving(folder) as url, urllib3.PoolManager() as pool:
        run = tensormeter.init("bench", id="latency", settings={"directory": folder / "state", "endpoint": url})
        at: dict[int, float] = {}
        seen: dict[int, float] = {}
        address = f"{url}/api/v1/runs/latency/series?metric=x&x=step"

        def watch() -> None:
            while len(seen) < rows:
                answer = pool.request("GET", address)
                now = time.monotonic()
                if answer.status == 200:
                    for series in answer.json()["series"]:
                        for step in series["step"]:
                            seen.setdefault(step, now)
                threading.Event().wait(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for step in range(rows):
            at[step] = time.monotonic()
            run.log({"x": 1.0}, step)
            threading.Event().wait(0.1)
        watcher.join(60)
        run.finish()
    delays = [seen[step] - at[step] for step in at if step in seen]
    p50, p99 = np.percentile(delays, [50, 99])
    return float(p50), float(p99)


class Counter:
    """A TCP proxy that counts the bytes that a client sends and receives, including headers."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.sent = self.received = 0
        port = self._listener.getsockname()[1]
        self.url = self._target._replace(netloc=f"127.0.0.1:{port}").geturl()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection((self._target.hostname, self._target.port))
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if up:
                    self.sent += len(data)
                else:
                    self.received += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


TRACKIO_SERVER = """
import sys, trackio
*_, url = trackio.show(open_browser=False, block_thread=False, host="127.0.0.1", share=False)
print("url", url, flush=True)
sys.stdin.read()
"""

TRACKIO_CLIENT = """
import json, sys, trackio
run = trackio.init("bench", server_url=sys.argv[1], embed=False, auto_log_gpu=False, auto_log_cpu=False)
for step, row in enumerate(json.load(open(sys.argv[2]))):
    trackio.log(row, step=step)
trackio.finish()
"""


def wire(folder: Path, rows: int) -> dict[str, float]:
    """Return the bytes per point for rows of four random values.

    For contenders with a server, these are all bytes on the socket, including HTTP headers.
    """
    values = np.random.default_rng(0).random((rows, 4))
    names = ("loss", "accuracy", "lr", "norm")
    data = [{name: float(x) for name, x in zip(names, line, strict=True)} for line in values]
    points = 4 * rows
    bytes_per_point = {}
    with serving(folder / "wire") as url:
        counter = Counter(url)
        settings = Settings(
            endpoint=counter.url, directory=folder / "wire-state", sample_interval=0, self_metrics_interval=0
        )
        run = tensormeter.init("bench", settings=settings)
        for step, row in enumerate(data):
            run.log(row, step)
        run.finish(timeout=120)
        bytes_per_point["tensormeter, sent"] = counter.sent / points
        bytes_per_point["tensormeter, responses"] = counter.received / points
    with contextlib.suppress(ImportError):
        bytes_per_point |= trackio_wire(folder, data)
    with contextlib.suppress(ImportError):
        wandb = importlib.import_module("wandb")
        os.environ["WANDB_SILENT"] = "true"
        run = wandb.init(
            project="bench", mode="offline", dir=str(folder), settings=wandb.Settings(x_disable_stats=True)
        )
        for step, row in enumerate(data):
            run.log(row, step)
        run.finish()
        files = [file.read_bytes() for file in (folder / "wandb").rglob("*.wandb")]
        bytes_per_point["wandb, offline file"] = sum(map(len, files)) / points
        bytes_per_point["wandb, offline file, gzip"] = sum(len(gzip.compress(file, 6)) for file in files) / points
    return bytes_per_point


def trackio_wire(folder: Path, data: list[dict[str, float]]) -> dict[str, float]:
    """Measure trackio's client, which sends to a trackio server on this machine."""
    if importlib.util.find_spec("trackio") is None:
        raise ImportError("trackio")
    (folder / "rows.json").write_text(json.dumps(data))
    environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio-server")}
    server = subprocess.Popen(
        [sys.executable, "-c", TRACKIO_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert server.stdout is not None
    try:
        url = next(line.split()[1] for line in server.stdout if line.startswith("url "))
        counter = Counter(url)
        subprocess.run(
            [sys.executable, "-c", TRACKIO_CLIENT, counter.url, str(folder / "rows.json")],
            env=os.environ | {"TRACKIO_DIR": str(folder / "trackio-client")},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=600,
        )
    finally:
        server.kill()
        server.communicate()
    points = 4 * len(data)
    return {"trackio, sent": counter.sent / points, "trackio, responses": counter.received / points}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tensormeter-bench-") as name:
        folder = Path(name)
        table = Table(title="The agent of an offline run, 20 values per row")
        for column in ("target points/s", "logged points/s", "share of one core", "resident MiB"):
            table.add_column(column, justify="right")
        for rate in RATES:
            logged, share, resident = agent_at(rate, arguments.seconds, folder)
            table.add_row(f"{rate:,}", f"{logged:,.0f}", f"{share:.1%}", f"{resident:.0f}")
        console.print(table)
        console.print(f"ring to spool: {ring_to_spool(folder):,.0f} points/s per core (steps count as points)")
        p50, p99 = latency(folder, 100)
        console.print(f"log to visible: p50 {p50:.2f} s, p99 {p99:.2f} s (schedule_delay 1 s)")
        for who, size in wire(folder, 20_000).items():
            console.print(f"bytes per point, {who}: {size:.1f}")


if __name__ == "__main__":
    main()
