"""Duration of a measurement with OpenTelemetry's metrics API: tensormeter's provider compared with the SDK's.

Both receive the same values with the same prebuilt attributes. They take turns in one process. Compare only ratios
within one run of the benchmark. Only the calls are timed.
"""

import gc
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from opentelemetry.metrics import MeterProvider as APIMeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from report import print_table

import tensormeter

SLICE = 1000
SLICES = 20
ATTRIBUTES = {"model": "small", "phase": "train"}

Call = Callable[[float], None]


def calls(provider: APIMeterProvider, name: str) -> dict[str, Call]:
    """Return the calls to measure, by title."""
    meter = provider.get_meter("benchmark")
    counter = meter.create_counter("counter")
    gauge = meter.create_gauge("gauge")
    histogram = meter.create_histogram("histogram")
    return {
        f"counter.add(float), {name}": lambda value: counter.add(value, ATTRIBUTES),
        f"counter.add(1), {name}": lambda value: counter.add(1, ATTRIBUTES),
        f"counter.add(1), no attributes, {name}": lambda value: counter.add(1),
        f"gauge.set(float), {name}": lambda value: gauge.set(value, ATTRIBUTES),
        f"histogram.record(float), {name}": lambda value: histogram.record(value, ATTRIBUTES),
    }


def measure(contenders: dict[str, Call]) -> dict[str, np.ndarray]:
    """Return the duration of each call in microseconds, without the duration of the timer and an empty call."""
    clock = time.perf_counter_ns
    values = itertools.cycle([i / 7 for i in range(1000)])
    samples: dict[str, list[int]] = {name: [] for name in ["", *contenders]}
    for turn in range(SLICES + 1):  # the first turn does not count
        for name, call in {"": lambda value: None, **contenders}.items():
            taken = []
            for value in itertools.islice(values, SLICE):
                start = clock()
                call(value)
                taken.append(clock() - start)
            if turn:
                samples[name] += taken
    empty = np.median(samples.pop(""))
    return {name: np.maximum(np.array(taken) - empty, 0) / 1000 for name, taken in samples.items()}


def main() -> int:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        run = tensormeter.init("benchmark", mode="offline", settings={"directory": Path(folder)})
        ours = tensormeter.MeterProvider(run=run)
        theirs = SDKMeterProvider([InMemoryMetricReader()])
        gc.collect()
        pairs = zip(calls(ours, "tensormeter").items(), calls(theirs, "SDK").items(), strict=True)
        taken = measure(dict(itertools.chain.from_iterable(pairs)))
        ours.shutdown()
        theirs.shutdown()
        run.finish()
    title = f"One measurement: microseconds, {SLICE * SLICES:,} calls each"
    print_table(title, taken, beside="counter.add(float), tensormeter")
    return 0


if __name__ == "__main__":
    sys.exit(main())
