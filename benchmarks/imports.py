"""Throughput of `tensormeter import` into a server on the same machine, from `.wandb` files, event files and Parquet.

Each source contains the same points: rows with 100 metrics. The files have the form that wandb 0.31, torch's `SummaryWriter`
and pandas write; `tests/importers` reads files that these wrote. The duration includes the start of the command, and ends when
the server has stored the points durably. Run this benchmark on an otherwise idle machine with two cores or more:
``python benchmarks/imports.py [--points 10000000] [--metrics 100]``
"""

import argparse
import contextlib
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import urllib3
from report import print_on_machine
from rich.table import Table

from tensormeter.importers.tensorboard.checksums import masked_checksums
from tensormeter.importers.tensorboard.messages import Event, Value
from tensormeter.importers.wandb.messages import Record

T0 = 1_750_000_000.0
BLOCK = 32768
EVENTS_AT_ONCE = 100_000


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server on a free port. Yield its URL and process."""
    command = [sys.executable, "-m", "tensormeter", "serve", "--port", "0", "--data", str(folder / "server")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TENSORMETER_DIR": str(folder)}
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[3], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def varint(number: int) -> bytes:
    data = b""
    while number > 0x7F:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


def field(tag: bytes, data: bytes) -> bytes:
    return tag + varint(len(data)) + data


def values_of(rows: int, metrics: int) -> np.ndarray:
    """Return noisy curves, float64, shape (rows, metrics)."""
    noise = np.random.default_rng(0).normal(1, 0.05, (rows, metrics))
    return np.exp(-np.arange(rows) / rows * 3)[:, np.newaxis] * noise


def write_wandb(path: Path, rows: int, metrics: int) -> None:
    """Write a `.wandb` file as wandb does: each value of a row is an item with a nested key."""
    heads = [field(b"\x12", f"train/metric_{metric}".encode()) + b"\x82\x01" for metric in range(metrics)]
    keys = {name: field(b"\x12", name.encode()) + b"\x82\x01" for name in ("_step", "_timestamp", "_runtime")}
    with path.open("wb") as file:
        file.write(b":W&B\xe1\xbe\x00")
        at = 7
        record = Record(num=1)
        record.run.run_id, record.run.project = path.stem.removeprefix("run-"), "bench"
        at = write_record(file, at, record.SerializeToString())
        for row in range(rows):
            texts = [repr(value) for value in values_of_row(row, rows, metrics)]
            items = [head + varint(len(text)) + text.encode() for head, text in zip(heads, texts, strict=True)]
            for name, value in (("_step", row), ("_timestamp", T0 + row * 0.1), ("_runtime", row * 0.1)):
                items.append(keys[name] + varint(len(repr(value))) + repr(value).encode())
            history = b"".join([b"\x0a" + varint(len(item)) + item for item in items]) + b"\x12\x02\x08\x00"
            at = write_record(file, at, b"\x08" + varint(row + 2) + field(b"\x12", history))
        record = Record(num=rows + 2)
        record.exit.exit_code = 0
        write_record(file, at, record.SerializeToString())


_VALUES: dict[tuple[int, int], np.ndarray] = {}


def values_of_row(row: int, rows: int, metrics: int) -> list[float]:
    key = rows, metrics
    if key not in _VALUES:
        _VALUES.clear()
        _VALUES[key] = values_of(rows, metrics)
    return _VALUES[key][row].tolist()


def write_record(file, at: int, data: bytes) -> int:
    """Write one record of a LevelDB log at an offset of the file. Return the offset after it."""
    first = True
    while True:
        room = BLOCK - at % BLOCK
        if room < 7:
            file.write(b"\0" * room)
            at += room
            room = BLOCK
        piece, data = data[: room - 7], data[room - 7 :]
        kind = (1 if not data else 2) if first else (4 if not data else 3)
        file.write(struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece)
        at += 7 + len(piece)
        first = False
        if not data:
            return at


def write_events(path: Path, rows: int, metrics: int) -> None:
    """Write an event file as torch's `SummaryWriter` does: an event for each scalar, with the time of its call."""
    pending = [Event(wall_time=T0, file_version="brain.Event:2").SerializeToString()]
    heads = [Value(tag=f"train/metric_{metric}").SerializeToString() + b"\x15" for metric in range(metrics)]
    values = values_of(rows, metrics).astype("<f4")
    with path.open("wb") as file:
        for row in range(rows):
            step = b"\x10" + varint(row)
            for metric, value in enumerate(values[row]):
                summary = field(b"\x0a", heads[metric] + value.tobytes())
                wall_time = struct.pack("<d", T0 + row * 0.1 + metric * 2e-5)
                pending.append(b"\x09" + wall_time + step + field(b"\x2a", summary))
            if len(pending) >= EVENTS_AT_ONCE or row == rows - 1:
                write_events_of(file, pending)
                pending = []


def write_events_of(file, events: list[bytes]) -> None:
    lengths = np.array([len(event) for event in events], np.int64)
    data = np.frombuffer(b"".join(events), np.uint8)
    sums = masked_checksums(data, np.cumsum(lengths) - lengths, lengths)
    headers = np.frombuffer(lengths.astype("<u8").tobytes(), np.uint8)
    eight = np.full(len(events), 8, np.int64)
    header_sums = masked_checksums(headers, np.arange(len(events)) * 8, eight)
    parts = zip(lengths.tolist(), header_sums.tolist(), events, sums.tolist(), strict=True)
    file.write(b"".join([struct.pack("<QI", n, s) + event + struct.pack("<I", c) for n, s, event, c in parts]))


def write_parquet(path: Path, rows: int, metrics: int) -> None:
    """Write a wide table with a column for each metric."""
    import pyarrow as pa
    from pyarrow import parquet

    values = values_of(rows, metrics)
    columns = {"step": np.arange(rows), "timestamp": T0 + np.arange(rows) * 0.1}
    columns |= {f"train/metric_{metric}": values[:, metric] for metric in range(metrics)}
    parquet.write_table(pa.table(columns), path)


SOURCES: dict[str, tuple[str, Callable[[Path, int, int], None]]] = {
    ".wandb": ("run-bench.wandb", write_wandb),
    "event file": ("events.out.tfevents.1750000000.host.1.0", write_events),
    "Parquet": ("bench.parquet", write_parquet),
}


def measure(name: str, rows: int, metrics: int) -> tuple[float, float, float, float, int]:
    """Return the seconds of an import, the processor seconds of the command and the server, and the file's MiB and points."""
    file_name, write = SOURCES[name]
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        path = folder / file_name
        write(path, rows, metrics)
        _VALUES.clear()
        with serving(folder) as (url, server):
            before, server_before = resource.getrusage(resource.RUSAGE_CHILDREN), sum(server.cpu_times()[:2])
            began = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "tensormeter", "import", str(path), "--endpoint", url],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds = time.monotonic() - began
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            (run,) = urllib3.request("GET", f"{url}/api/v1/runs").json()["runs"]
            listed = urllib3.request("GET", f"{url}/api/v1/runs/{run['id']}/metrics?limit=1000").json()["metrics"]
            points = sum(metric["points"] for metric in listed if metric["name"] != "tensormeter.step")
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            server_used = sum(server.cpu_times()[:2]) - server_before
        return seconds, used, server_used, path.stat().st_size / (1 << 20), points


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--metrics", type=int, default=100)
    parser.add_argument("--sources", default=",".join(SOURCES))
    options = parser.parse_args()
    rows = options.points // options.metrics
    table = Table(title=f"{rows * options.metrics:,} points: {rows:,} rows of {options.metrics} metrics")
    for column in ("source", "MiB", "seconds", "points/s", "import, CPU s", "server, CPU s", "load before"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for name in options.sources.split(","):
        load = os.getloadavg()[0]
        seconds, used, server_used, size, points = measure(name, rows, options.metrics)
        assert points == rows * options.metrics, f"{name}: the server has {points:,} points"
        table.add_row(
            name,
            f"{size:,.0f}",
            f"{seconds:.1f}",
            f"{points / seconds:,.0f}",
            f"{used:.1f}",
            f"{server_used:.1f}",
            f"{load:.1f}",
        )
    print_on_machine(table)


if __name__ == "__main__":
    main()
