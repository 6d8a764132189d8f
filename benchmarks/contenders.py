"""Loggers to compare: context managers that yield a function ``log(values, step)``. None of them uses a server."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Log = Callable[[Any, int], object]


@contextlib.contextmanager
def nothing(folder: Path) -> Iterator[Log]:
    yield lambda values, step: None


@contextlib.contextmanager
def list_append(folder: Path) -> Iterator[Log]:
    rows: list[tuple[int, dict[str, float], int]] = []
    yield lambda values, step: rows.append((time.time_ns(), values, step))


@contextlib.contextmanager
def tensormeter_log(folder: Path) -> Iterator[Log]:
    import tensormeter

    settings = {"directory": folder / "runs", "mode": "offline"}
    with tensormeter.init("bench", settings=settings) as run:
        # Look up `run.log` in each call, as scripts do.
        yield lambda values, step: run.log(values, step)  # noqa: PLW0108 - `run.log` changes


@contextlib.contextmanager
def tensormeter_without_agent(folder: Path) -> Iterator[Log]:
    """Log to a ring that has space for all rows and that no agent reads, to measure only the calls."""
    import tensormeter

    settings = {"directory": folder / "runs", "agent": "off", "buffer_bytes": 64 << 20, "sample_interval": 0.0}
    with tensormeter.init("bench", settings=settings) as run:
        yield lambda values, step: run.log(values, step)  # noqa: PLW0108 - `run.log` changes


@contextlib.contextmanager
def otel_sdk(folder: Path) -> Iterator[Log]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    provider = MeterProvider([InMemoryMetricReader()])
    meter = provider.get_meter("bench")
    gauges = {}

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if name not in gauges:
                gauges[name] = meter.create_gauge(name)
            gauges[name].set(value)

    yield log
    provider.shutdown()


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    yield log
    writer.close()


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


@contextlib.contextmanager
def mlflow_async(folder: Path) -> Iterator[Log]:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("bench")
    with mlflow.start_run():
        yield lambda values, step: mlflow.log_metrics(values, step=step, synchronous=False)


CONTENDERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Log]]] = {
    "nothing": nothing,
    "list.append": list_append,
    "tensormeter": tensormeter_log,
    "OpenTelemetry SDK, gauges": otel_sdk,
    "trackio": trackio_log,
    "wandb, offline": wandb_offline,
    "tensorboard": tensorboard,
    "mlflow, async": mlflow_async,
}
PACKAGES = ("tensormeter", "opentelemetry-sdk", "trackio", "wandb", "tensorboard", "mlflow-skinny", "torch")
