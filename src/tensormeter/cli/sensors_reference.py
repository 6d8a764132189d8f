"""The page of all instruments, from the code: ``python -m tensormeter.cli.sensors_reference > docs/sensors.md``."""

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
            f"Sensors `{NvidiaSensor.name}` (NVML, extra `gpu`) and `{AmdSensor.name}` (AMD SMI, extra `amd`). A GPU or MIG device "
            "gives what it has. `tensormeter.gpu.sm.*`, `.tensor.activity` and `.dram.activity` need an NVIDIA GPU from Hopper on."
        ),
    ),
    ("Machine", HostSensor.instruments, f"Sensor `{HostSensor.name}`. CPU figures are of all processors together."),
    (
        "File systems",
        FilesystemSensor.instruments,
        (
            f"Sensor `{FilesystemSensor.name}`: those of `/`, of temporary files, of shared memory, of tensormeter's own folder, and "
            "of the trainers' working folders."
        ),
    ),
    (
        "Processes",
        ProcessSensor.instruments,
        (
            f"Sensor `{ProcessSensor.name}`: each training process (role `trainer`), its children together, such as DataLoader "
            "workers (`children`), and the agent itself (`agent`)."
        ),
    ),
    (
        "Container",
        ContainerSensor.instruments,
        (
            f"Sensor `{ContainerSensor.name}`: control groups of version 1 and 2, where their limits are lower than what the machine "
            "has; else nothing."
        ),
    ),
    ("Sensors", SAMPLER_INSTRUMENTS, "What sampling itself costs, and what it could not read."),
)

ALL_INSTRUMENTS: Final = tuple(instrument for _, instruments, _ in _PARTS for instrument in instruments)

_HEAD: Final = """\
# Statistics of GPUs, host and processes

The agent samples them, once for each run and node, whatever the number of ranks; the training process does nothing for it, and
need not even run: a stopped or hung trainer still has statistics. `sample_interval` (10 seconds) says how often; 0 turns them
off. Several samples travel in one request.

Statistics belong to a process of the run with `tensormeter.process.kind=node`, whose `service.instance.id` is the same for the
same project, run and host. Names, units and attributes are OpenTelemetry's semantic conventions' where they have any;
everything else begins with `tensormeter.`. Counters and up-down counters are cumulative sums. A reading that fails is left out
and counted in `tensormeter.sensor.failures`; a sensor that hangs stops only itself. Apple's GPUs are left out: no well-kept
library reads them without root.

This page is made from the code: `python -m tensormeter.cli.sensors_reference > docs/sensors.md`.
"""

_VITALS: Final = """
## Training process

What only the training process knows: torch's allocator and Python's garbage collector. It records them itself, as its own
metrics, when it logs and `sample_interval` is over, and when it finishes. Nothing waits for the GPU.

"""

_TABLE_HEAD: Final = ("| name | kind | unit | attributes | |", "|---|---|---|---|---|")


def page() -> str:
    """The page, as Markdown."""
    parts = "".join(f"\n## {title}\n\n{text}\n\n{_table(instruments)}" for title, instruments, text in _PARTS)
    return _HEAD + parts + _VITALS + "\n".join([*_TABLE_HEAD, *_vitals()]) + "\n"


def _vitals() -> Iterator[str]:
    for name, (_, kind, unit, description) in TORCH_MEMORY.items():
        shown = "gauge" if kind == "gauge" else "counter"
        yield f"| `{name}` | {shown} | `{unit}` | `tensormeter.torch.device` | {description} |"
    for name, (_, unit, description) in GARBAGE.items():
        yield f"| `{name}` | counter | `{unit}` | `cpython.gc.generation` | {description} |"


def _table(instruments: Iterable[Instrument]) -> str:
    rows = [*_TABLE_HEAD]
    for item in instruments:
        attributes = ", ".join(f"`{name}`" for name in item.attributes)
        rows.append(f"| `{item.name}` | {item.kind} | `{item.unit}` | {attributes} | {item.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
