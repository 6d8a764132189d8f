"""Generates the reference of all automatic metrics: ``python -m tensormeter.cli.sensors_reference > docs/sensors.md``."""

from collections.abc import Iterable, Iterator
from typing import Final

from tensormeter.record.runtime.gc_metrics import GARBAGE
from tensormeter.record.runtime.torch_memory import TORCH_MEMORY
from tensormeter.sensors.gpu.amd import AmdSensor
from tensormeter.sensors.gpu.instruments import GPU_INSTRUMENTS
from tensormeter.sensors.gpu.nvidia import NvidiaSensor
from tensormeter.sensors.host.container import ContainerSensor
from tensormeter.sensors.host.filesystem import FilesystemSensor
from tensormeter.sensors.host.host import HostSensor
from tensormeter.sensors.host.process import ProcessSensor
from tensormeter.sensors.instrument import Instrument
from tensormeter.sensors.sampler import SAMPLER_INSTRUMENTS

__all__ = ["ALL_INSTRUMENTS", "page"]

_PARTS: Final = (
    (
        "GPUs",
        GPU_INSTRUMENTS,
        (
            f"Sensors: `{NvidiaSensor.name}` (NVML, extra `gpu`) and `{AmdSensor.name}` (AMD SMI, extra `amd`). Each GPU or MIG device "
            "reports the metrics that it supports. `tensormeter.gpu.sm.*`, `.tensor.activity` and `.dram.activity` need an NVIDIA GPU "
            "of the Hopper generation or later."
        ),
    ),
    ("Machine", HostSensor.instruments, f"Sensor: `{HostSensor.name}`. CPU metrics cover all processors together."),
    (
        "File systems",
        FilesystemSensor.instruments,
        (
            f"Sensor: `{FilesystemSensor.name}`. It covers the file systems of `/`, temporary files, shared memory, tensormeter's own "
            "folder, and the working folders of the training processes."
        ),
    ),
    (
        "Processes",
        ProcessSensor.instruments,
        (
            f"Sensor: `{ProcessSensor.name}`. It covers each training process (role `trainer`), the sum of its children such as "
            "DataLoader workers (`children`), and the agent itself (`agent`)."
        ),
    ),
    (
        "Container",
        ContainerSensor.instruments,
        (
            f"Sensor: `{ContainerSensor.name}`. It covers control groups of version 1 and 2 whose limits are lower than the machine's "
            "resources; otherwise it reports nothing."
        ),
    ),
    ("Sensors", SAMPLER_INSTRUMENTS, "These metrics report the cost and the failures of sampling itself."),
)

ALL_INSTRUMENTS: Final = tuple(instrument for _, instruments, _ in _PARTS for instrument in instruments)

_HEAD: Final = """\
# Metrics of GPUs, host and processes

The agent samples these metrics once per run and node, not per rank. The training process does no work for them, and
a stopped or hung training process still has them. The setting `sample_interval` is the interval (default: 10 seconds; 0 turns the
metrics off). A request contains several samples.

The metrics belong to a process of the run with `tensormeter.process.kind=node`. Its `service.instance.id` stays the same for the same
project, run and host. Names, units and attributes follow OpenTelemetry's semantic conventions; all other names begin with
`tensormeter.`. Counters and up-down counters are cumulative sums. If a reading fails, its points are missing, and
`tensormeter.sensor.failures` counts it. A sensor that hangs does not affect the others. Apple's GPUs are not supported: no
maintained library reads them without root.

This page is generated: `python -m tensormeter.cli.sensors_reference > docs/sensors.md`.
"""

_TRAINING_PROCESS: Final = """
## Training process

The training process itself records the metrics of torch's allocator and of Python's garbage collector. It records them with the first
log call after each `sample_interval`, and when it finishes. Reading them does not wait for the GPU.

"""

_TABLE_HEAD: Final = ("| name | kind | unit | attributes | description |", "|---|---|---|---|---|")


def page() -> str:
    """Generate the page, as Markdown."""
    parts = "".join(f"\n## {title}\n\n{text}\n\n{_table(instruments)}" for title, instruments, text in _PARTS)
    return _HEAD + parts + _TRAINING_PROCESS + "\n".join([*_TABLE_HEAD, *_training_process_rows()]) + "\n"


def _training_process_rows() -> Iterator[str]:
    for name, (_, kind, unit, description) in TORCH_MEMORY.items():
        instrument = "gauge" if kind == "gauge" else "counter"
        yield f"| `{name}` | {instrument} | `{unit}` | `tensormeter.torch.device` | {description} |"
    for name, (_, unit, description) in GARBAGE.items():
        yield f"| `{name}` | counter | `{unit}` | `cpython.gc.generation` | {description} |"


def _table(instruments: Iterable[Instrument]) -> str:
    rows = [*_TABLE_HEAD]
    for instrument in instruments:
        attributes = ", ".join(f"`{name}`" for name in instrument.attributes)
        rows.append(
            f"| `{instrument.name}` | {instrument.kind} | `{instrument.unit}` | {attributes} | {instrument.description} |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
