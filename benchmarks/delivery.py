"""What delivery costs: the agent's processor time and memory, how fast it is, how late points are, and bytes on the wire.

Run it alone on a quiet machine: ``python benchmarks/delivery.py [--seconds 5]``
"""

import argparse
import contextlib
import gzip
import importlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import urllib3
from rich.console import Console
from rich.table import Table

import tensormeter
from tensormeter import Settings
from tensormeter.pipeline.directory import list_runs
from tensormeter.pipeline.drain import Drain
from tensormeter.pipeline.spool import Spool
from tensormeter.record.recorder import Recorder
from tensormeter.ring import RingFile

RATES = (1_000, 10_000, 100_000, 1_000_000)
PER_ROW = 20
console = Console(width=110)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server on a free port."""
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
    """Points a second that were logged, share of a core that the agent used, and its resident MiB at most; offline."""
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
    """Points a second from ring to spool, encoded and on disk, on one core."""
    ring = RingFile.create(folder / "bench.ring", {}, buffer_bytes=128 << 20)
    recorder = Recorder(ring, on_writer=lambda writer: None)
    row = {f"metric/{k}": k * 0.1 for k in range(PER_ROW)}
    rows = 200_000
    for step in range(rows):
        recorder.log(row, step)
    spool = Spool(folder / "bench.sqlite", max_bytes=1 << 30)
    drain = Drain(RingFile.open(ring.path), spool, ["experiment"], Settings(schedule_delay=3600))
    begun = time.process_time()
    drain.advance(flush=True)
    took = time.process_time() - begun
    items = spool.pending_items()
    spool.close()
    ring.release()
    return items / took


def latency(folder: Path, rows: int) -> tuple[float, float]:
    """Seconds from `log` to visible in the API, p50 and p99, at the default settings."""
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


def wire(folder: Path, rows: int) -> dict[str, float]:
    """Bytes a point of four random values a row."""
    values = np.random.default_rng(0).random((rows, 4))
    data = [
        {name: float(x) for name, x in zip(("loss", "accuracy", "lr", "norm"), line, strict=True)} for line in values
    ]
    settings = Settings(directory=folder / "wire", mode="offline", agent="thread", finish_timeout=120)
    run = tensormeter.init("bench", settings=settings)
    for step, row in enumerate(data):
        run.log(row, step)
    run.finish()
    (directory,) = list_runs(settings.directory)
    spool = Spool(directory.spool)
    found = {"tensormeter, requests": sum(size for *_, size in spool.contents()) / (4 * rows)}
    spool.close()
    with contextlib.suppress(ImportError):
        wandb = importlib.import_module("wandb")
        os.environ["WANDB_SILENT"] = "true"
        run = wandb.init(
            project="bench", mode="offline", dir=str(folder), settings=wandb.Settings(x_disable_stats=True)
        )
        for step, row in enumerate(data):
            run.log(row, step)
        run.finish()
        files = list((folder / "wandb").rglob("*.wandb"))
        found["wandb, offline file"] = sum(file.stat().st_size for file in files) / (4 * rows)
        found["wandb, offline file, gzip"] = sum(len(gzip.compress(file.read_bytes(), 6)) for file in files) / (
            4 * rows
        )
    with contextlib.suppress(ImportError):
        importlib.import_module("trackio")
        import json

        # Its client posts JSON: project, run, metrics, step, timestamp and an id for each row.
        posted = [
            {"project": "bench", "run": "bench", "metrics": row, "step": k, "timestamp": "2026-01-01T00:00:00+00:00",
             "log_id": os.urandom(16).hex()}
            for k, row in enumerate(data)
        ]  # fmt: skip
        found["trackio, its JSON rows"] = len(json.dumps(posted)) / (4 * rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tensormeter-bench-") as name:
        folder = Path(name)
        table = Table(title="The agent, offline, 20 values a row")
        for column in ("points/s wanted", "points/s logged", "of a core", "resident MiB"):
            table.add_column(column, justify="right")
        for rate in RATES:
            logged, share, resident = agent_at(rate, arguments.seconds, folder)
            table.add_row(f"{rate:,}", f"{logged:,.0f}", f"{share:.1%}", f"{resident:.0f}")
        console.print(table)
        console.print(f"ring to spool: {ring_to_spool(folder):,.0f} points/s of one core (steps are points, too)")
        p50, p99 = latency(folder, 100)
        console.print(f"log to visible: p50 {p50:.2f} s, p99 {p99:.2f} s (schedule_delay 1 s)")
        for who, size in wire(folder, 20_000).items():
            console.print(f"bytes a point: {who} {size:.1f}")


if __name__ == "__main__":
    main()
