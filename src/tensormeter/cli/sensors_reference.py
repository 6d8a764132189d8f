"""Generator of the metrics reference: ``python -m tensormeter.cli.sensors_reference > docs/sensors.md``."""

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
            f"Sensors: `{NvidiaSensor.name}` for NVIDIA GPUs (requires `tensormeter[gpu]`) and `{AmdSensor.name}` for AMD GPUs "
            "(requires `tensormeter[amd]`). Each GPU or MIG device reports only the metrics that it supports. "
            "`tensormeter.gpu.sm.*`, `tensormeter.gpu.tensor.activity` and `tensormeter.gpu.dram.activity` require an NVIDIA "
            "GPU of the Hopper generation or later."
        ),
    ),
    ("Machine", HostSensor.instruments, f"Sensor: `{HostSensor.name}`. CPU metrics are totals over all processors."),
    (
        "File systems",
        FilesystemSensor.instruments,
        (
            f"Sensor: `{FilesystemSensor.name}`. It covers the file systems that contain `/`, temporary files, shared memory, "
            "tensormeter's state directory, and the working directories of the training processes."
        ),
    ),
    (
        "Processes",
        ProcessSensor.instruments,
        (
            f"Sensor: `{ProcessSensor.name}`. It covers each training process (role `trainer`), the total of its child processes "
            "such as DataLoader workers (`children`), and the agent itself (`agent`)."
        ),
    ),
    (
        "Container",
        ContainerSensor.instruments,
        (
            f"Sensor: `{ContainerSensor.name}`. It covers control groups (versions 1 and 2) whose limits are lower than the machine's "
            "resources. Without such limits, it reports nothing."
        ),
    ),
    ("Sensors", SAMPLER_INSTRUMENTS, "These metrics report the cost and failures of the sampling itself."),
)

ALL_INSTRUMENTS: Final = tuple(instrument for _, instruments, _ in _PARTS for instrument in instruments)

_HEAD: Final = """\
# GPU, host and process metrics

The agent samples all metrics on this page except those of the [training process](#training-process) once per run and node, not
once per rank. Sampling adds no work to the training process, and continues even if that process is stopped or hangs. The
`sample_interval` setting is the interval in seconds (default 10; 0 turns sampling off). The agent sends several samples in one
request.

The agent records these metrics under an additional process of the run, whose resource has `tensormeter.process.kind=node`. The
`service.instance.id` of that process depends only on the project, run and host. Names, units and attributes follow
OpenTelemetry's semantic conventions. Names that the conventions do not define begin with `tensormeter.`. Counters and up-down
counters are cumulative sums. If a reading fails, the values that it has already read are kept, its remaining points are omitted,
and `tensormeter.sensor.failures` is incremented. A sensor that hangs does not affect the others; after 30 s, or three intervals
if that is longer, it is counted as `stuck`, even if it never responds again. Apple GPUs are not supported, because no maintained
library can read their metrics without root access.

This page is generated. To update it, run `python -m tensormeter.cli.sensors_reference > docs/sensors.md`.
"""

_TRAINING_PROCESS: Final = """
## Training process

The training process itself records metrics of torch's memory allocator and Python's garbage collector. It records them in the
first log call after each `sample_interval` and when the run finishes. Reading them does not wait for the GPU.

"""

_TABLE_HEAD: Final = ("| name | kind | unit | attributes | description |", "|---|---|---|---|---|")


def page() -> str:
    """Return the page as Markdown."""
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
