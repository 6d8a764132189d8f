"""What one log call costs the training loop, beside what people would use instead.

Every contender logs the same four Python floats from the same prebuilt dictionaries.
They take turns in slices, in one process, so that the machine's moods fall on all of them alike; the figures to compare are the
ratios of one run.
Only the call is timed. What a contender does on other threads or processes meanwhile slows everybody's slices alike.
Delivery is off or offline for all: no server takes part.
"""

import contextlib
import gc
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

SLICE = 1000
SLICES = 20
ROWS = [{"loss": 1.0 / (i + 1), "accuracy": i / 100, "lr": 1e-3, "grad_norm": float(i)} for i in range(64)]

Log = Callable[[dict[str, float], int], object]


@contextlib.contextmanager
def list_append(folder: Path) -> Iterator[Log]:
    rows: list[tuple[int, dict[str, float], int]] = []
    yield lambda values, step: rows.append((time.time_ns(), values, step))


@contextlib.contextmanager
def tensormeter_log(folder: Path) -> Iterator[Log]:
    import tensormeter

    with tensormeter.init("bench", settings={"directory": folder, "mode": "offline"}) as run:
        run.log(ROWS[0], 0)
        yield run.log  # as a loop that holds on to it would call it: the writer for these keys


@contextlib.contextmanager
def otel_sdk(folder: Path) -> Iterator[Log]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    provider = MeterProvider([InMemoryMetricReader()])
    gauges = {name: provider.get_meter("bench").create_gauge(name) for name in ROWS[0]}

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            gauges[name].set(value)

    yield log
    provider.shutdown()


@contextlib.contextmanager
def trackio_log(folder: Path) -> Iterator[Log]:
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    import trackio

    trackio.init(project="bench", embed=False)
    yield lambda values, step: trackio.log(values, step=step)
    trackio.finish()


@contextlib.contextmanager
def wandb_offline(folder: Path) -> Iterator[Log]:
    import wandb

    run = wandb.init(project="bench", dir=folder, mode="offline", settings=wandb.Settings(console="off", silent=True))
    yield lambda values, step: run.log(values, step=step)
    run.finish()


CONTENDERS = {
    "list.append": list_append,
    "tensormeter": tensormeter_log,
    "OpenTelemetry SDK, 4 gauges": otel_sdk,
    "trackio": trackio_log,
    "wandb, offline": wandb_offline,
}


def measure(logs: dict[str, Log]) -> dict[str, np.ndarray]:
    """Microseconds of every call, by contender; the timer's own cost is taken off."""
    clock = time.perf_counter_ns
    empty = min(_elapsed(clock) for _ in range(10_000))
    samples: dict[str, list[int]] = {name: [] for name in logs}
    step = SLICE
    for _ in range(SLICES):
        for name, log in logs.items():
            taken = samples[name]
            for i in range(step, step + SLICE):
                row = ROWS[i & 63]
                start = clock()
                log(row, i)
                taken.append(clock() - start)
        step += SLICE
    return {name: np.maximum(np.array(taken) - empty, 0) / 1000 for name, taken in samples.items()}


def _elapsed(clock: Callable[[], int]) -> int:
    start = clock()
    return clock() - start


def main() -> int:
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        logs: dict[str, Log] = {}
        for contender, start in CONTENDERS.items():
            try:
                with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                    logs[contender] = stack.enter_context(start(folder))
            except ImportError as error:
                print(f"{contender} is left out: {error}", file=sys.stderr)
        for log in logs.values():  # first calls make tables, threads and files
            for i in range(SLICE):
                log(ROWS[i & 63], i)
        gc.collect()
        taken = measure(logs)
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            stack.close()
    show(taken)
    return 0


def show(taken: dict[str, np.ndarray]) -> None:
    ours = np.median(taken["tensormeter"])
    table = Table(title=f"One log call of 4 floats, {SLICE * SLICES:,} calls each, microseconds")
    for column in ("", "p50", "p99", "p99.9", "p50 beside tensormeter"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in taken.items():
        p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", f"{p999:.1f}", f"{p50 / ours:.1f}x")
    console = Console(width=100)
    console.print(table)
    packages = [
        f"{name} {version(name)}" for name in ("tensormeter", "opentelemetry-sdk", "trackio", "wandb") if _has(name)
    ]
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(packages)}"
    )


def _has(package: str) -> bool:
    with contextlib.suppress(Exception):
        return bool(version(package))
    return False


if __name__ == "__main__":
    sys.exit(main())
