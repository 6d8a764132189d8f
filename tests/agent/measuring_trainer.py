"""A training process that knows only OpenTelemetry's API, and does what its standard input says."""

import sys

from opentelemetry import metrics
from opentelemetry.metrics import Observation

total = 0
meter = metrics.get_meter("trainer", "1.0")
counter = meter.create_counter("samples", unit="{sample}", description="seen so far")
histogram = meter.create_histogram("duration", unit="s", explicit_bucket_boundaries_advisory=[0.5, 1])
gauge = meter.create_gauge("loss")
meter.create_observable_counter("total", [lambda options: [Observation(total)]])
print("ok", flush=True)
for line in sys.stdin:
    command, *arguments = line.split()
    if command == "measure":
        for i in range(*map(int, arguments)):
            total += i
            counter.add(i, {"split": "train"})
            histogram.record(i % 3 / 2)
            gauge.set(i / 7)
    elif command == "flush":
        assert metrics.get_meter_provider().force_flush(300_000)  # type: ignore[attr-defined]
    print("ok", flush=True)
