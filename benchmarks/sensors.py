"""Processor time and memory that sampling the node's statistics needs, compared with alternatives.

Each contender samples in a separate process, one after the other. The table shows the processor time per sample and the
additional resident memory since sampling began, both including child processes. The contenders read different
statistics, so the table also shows the number of series.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version

import psutil
from rich.console import Console
from rich.table import Table

SAMPLES = 100
INTERVAL = 0.1
WANDB_SECONDS = 20.0

Figures = dict[str, float]


def processor_time(process: psutil.Process) -> float:
    """Return the processor time, in seconds, of a process and all its descendants, including ended ones."""
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        own = times.user + times.system + times.children_user + times.children_system
        return own + sum(processor_time(child) for child in process.children())
    return 0.0


def resident(process: psutil.Process) -> int:
    """Return the resident memory, in bytes, of a process and all its descendants."""
    sizes = 0
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes += member.memory_info().rss
    return sizes


def tensormeter() -> Figures:
    """Measure everything from the sensors to the compressed request, as in the agent."""
    import gzip

    from tensormeter.otlp.encode import encode_metrics
    from tensormeter.sensors.node import Node
    from tensormeter.sensors.targets import TrainingProcess, Watch

    me = psutil.Process()
    before = resident(me)
    process = TrainingProcess("this", os.getpid(), time.time())
    node = Node({"service.name": "bench"}, Watch(processes=(process,)), interval=INTERVAL, delay=1.0)
    samples = bytes_sent = requests = 0
    series: set[object] = set()
    begun = None
    while samples < SAMPLES:
        threading.Event().wait(0.01)
        batch = node.take(flush=False, most_points=1 << 30)
        if batch is None:
            continue
        body = gzip.compress(encode_metrics([batch]), 6, mtime=0)
        if begun is None:  # the first request has one sample and includes the startup time
            begun = time.process_time()
            continue
        samples += max(len(sensor_series.times) for sensor_series in batch.series)
        series |= {(sensor_series.name, *sorted(sensor_series.attributes.items())) for sensor_series in batch.series}
        bytes_sent += len(body)
        requests += 1
    taken = time.process_time() - begun
    node.stop(1.0)
    return {
        "milliseconds": 1e3 * taken / samples,
        "memory": resident(me) - before,
        "series": len(series),
        "bytes": bytes_sent / samples,
    }


def opentelemetry() -> Figures:
    """Measure opentelemetry-instrumentation-system-metrics, collected and encoded with the SDK's exporter code."""
    import gzip

    from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    try:
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    except ImportError:
        encode_metrics = None
    me = psutil.Process()
    before = resident(me)
    reader = InMemoryMetricReader()
    SystemMetricsInstrumentor().instrument(meter_provider=MeterProvider([reader]))
    reader.get_metrics_data()
    series = size = 0
    begun = time.process_time()
    for _ in range(SAMPLES):
        data = reader.get_metrics_data()
        series = sum(
            len(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        if encode_metrics is not None:
            size += len(gzip.compress(encode_metrics(data).SerializeToString(), 6))
    taken = time.process_time() - begun
    return {
        "milliseconds": 1e3 * taken / SAMPLES,
        "memory": resident(me) - before,
        "series": series,
        "bytes": size / SAMPLES,
    }


def wandb() -> Figures:
    """Measure wandb offline. Its sampler runs in a separate process, whose cost without sampling is subtracted."""
    with_sampling, without = _wandb(sampling=True), _wandb(sampling=False)
    return {
        "milliseconds": 1e3 * (with_sampling[0] - without[0]) / (WANDB_SECONDS / INTERVAL),
        "memory": with_sampling[1] - without[1],
    }


def _wandb(*, sampling: bool) -> tuple[float, int]:
    """Run wandb for `WANDB_SECONDS`. Return its processes' processor time in seconds and resident memory in bytes."""
    code = (
        "import sys, wandb; "
        "s = wandb.Settings(x_stats_sampling_interval=float(sys.argv[2]), x_disable_stats=sys.argv[1] == '0', silent=True); "
        "run = wandb.init(mode='offline', project='bench', settings=s); print('begun', flush=True); sys.stdin.read(); run.finish()"
    )
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(int(sampling)), str(INTERVAL)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"WANDB_DIR": folder},
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("begun"):
                break
        watched = psutil.Process(process.pid)
        begun = processor_time(watched)
        threading.Event().wait(WANDB_SECONDS)
        taken, size = processor_time(watched) - begun, resident(watched)
        process.communicate()
    return taken, size


CONTENDERS: dict[str, tuple[str, str, Callable[[], Figures]]] = {
    "tensormeter": ("tensormeter", "tensormeter", tensormeter),
    "OTel system-metrics": (
        "opentelemetry.instrumentation.system_metrics",
        "opentelemetry-instrumentation-system-metrics",
        opentelemetry,
    ),
    "wandb (offline)": ("wandb", "wandb", wandb),
}


def main() -> int:
    if len(sys.argv) > 1:
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet):
            figures = CONTENDERS[sys.argv[1]][2]()
        print(json.dumps(figures))
        return 0
    table = Table(title=f"A sample of the node's statistics: {SAMPLES} samples, one every {INTERVAL} s")
    for column in ("", "CPU per sample, ms", "additional resident memory, MB", "series", "bytes per sample, gzip"):
        table.add_column(column, justify="right" if column else "left")
    used = []
    for name, (module, package, _) in CONTENDERS.items():
        try:
            __import__(module)
            used.append(f"{package} {version(package)}")
        except ImportError as error:
            print(f"skipping {name}: {error}", file=sys.stderr)
            continue
        done = subprocess.run([sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout)
        table.add_row(
            name,
            f"{figures['milliseconds']:.2f}",
            f"{figures['memory'] / 1e6:.1f}",
            f"{figures['series']:.0f}" if "series" in figures else "?",
            f"{figures['bytes']:,.0f}" if figures.get("bytes") else "?",
        )
    console = Console(width=110)
    console.print(table)
    console.print(f"{os.cpu_count()} cores, {', '.join(used)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
