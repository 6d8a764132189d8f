"""Instruments of GPUs, whoever made them. `hw.*` are the semantic conventions'; they have no names for the rest."""

from typing import Final

from tensormeter.conventions.semconv import PROCESS_ROLE
from tensormeter.sensors.instrument import Instrument, Kind

__all__ = ["GPU_INSTRUMENTS", "Monotonic", "visible_to"]

_GPU: Final = ("hw.id", "hw.name", "hw.type", "hw.parent")
"""The GPU's UUID; its number, for people; `gpu`; for a MIG device, the UUID of its GPU."""


def _gpu(name: str, kind: Kind, unit: str, description: str, *attributes: str) -> Instrument:
    return Instrument(name, kind, unit, description, (*_GPU, *attributes))


UTILIZATION: Final = _gpu(
    "hw.gpu.utilization", "gauge", "1", "Share of time in which a kernel ran, or the codec worked.", "hw.gpu.task"
)
MEMORY_USAGE: Final = _gpu("hw.gpu.memory.usage", "updowncounter", "By", "Memory in use, by whomever.")
MEMORY_LIMIT: Final = _gpu(
    "hw.gpu.memory.limit",
    "updowncounter",
    "By",
    "Memory of the GPU.",
    "hw.model",
    "hw.vendor",
    "hw.driver_version",
)
MEMORY_UTILIZATION: Final = _gpu("hw.gpu.memory.utilization", "gauge", "1", "Share of the memory that is in use.")
IO: Final = _gpu("hw.gpu.io", "counter", "By", "Bytes over PCIe.", "network.io.direction")
ERRORS: Final = _gpu(
    "hw.errors",
    "counter",
    "{error}",
    "ECC errors since the driver was loaded: `corrected`, `uncorrected`.",
    "error.type",
)
POWER: Final = _gpu("hw.power", "gauge", "W", "Power drawn.")
ENERGY: Final = _gpu("hw.energy", "counter", "J", "Energy used since the driver was loaded.")
TEMPERATURE: Final = _gpu(
    "hw.temperature",
    "gauge",
    "Cel",
    "Temperature, of the chip (`gpu`) and of its memory (`memory`).",
    "hw.sensor_location",
)
FAN_SPEED: Final = _gpu(
    "hw.fan.speed_ratio", "gauge", "1", "Speed of a fan, as a share of its highest.", "hw.sensor_location"
)

CLOCK: Final = _gpu(
    "tensormeter.gpu.clock.frequency",
    "gauge",
    "Hz",
    "Clock frequency: `graphics`, `sm`, `memory`, `video`.",
    "tensormeter.gpu.clock",
)
POWER_LIMIT: Final = _gpu("tensormeter.gpu.power.limit", "gauge", "W", "Power that the GPU may draw.")
THROTTLED: Final = _gpu(
    "tensormeter.gpu.throttled",
    "gauge",
    "1",
    "1 while clocks are held down for this reason, else 0.",
    "tensormeter.gpu.throttle.reason",
)
MEMORY_ACTIVITY: Final = _gpu(
    "tensormeter.gpu.memory.activity", "gauge", "1", "Share of time in which memory was read or written."
)
SM_ACTIVITY: Final = _gpu("tensormeter.gpu.sm.activity", "gauge", "1", "Share of multiprocessors that were busy.")
SM_OCCUPANCY: Final = _gpu(
    "tensormeter.gpu.sm.occupancy", "gauge", "1", "Warps that were resident, as a share of the most that could be."
)
TENSOR_ACTIVITY: Final = _gpu(
    "tensormeter.gpu.tensor.activity", "gauge", "1", "Share of time in which the tensor cores worked."
)
DRAM_ACTIVITY: Final = _gpu(
    "tensormeter.gpu.dram.activity", "gauge", "1", "Share of the memory bandwidth that was used."
)
PCIE_THROUGHPUT: Final = _gpu(
    "tensormeter.gpu.pcie.throughput",
    "gauge",
    "By/s",
    "Bytes a second over PCIe, in the last 20 ms; where the driver does not count them.",
    "network.io.direction",
)
NVLINK_IO: Final = _gpu(
    "tensormeter.gpu.nvlink.io", "counter", "By", "Bytes over all links to other GPUs.", "network.io.direction"
)
XID_ERRORS: Final = _gpu(
    "tensormeter.gpu.xid.errors",
    "counter",
    "{error}",
    "Errors that the driver reported since sampling began, by number (NVIDIA: XID).",
    "tensormeter.gpu.xid",
)
PROCESS_MEMORY: Final = _gpu(
    "tensormeter.gpu.process.memory.usage",
    "updowncounter",
    "By",
    "Memory that a process uses on the GPU; role `trainer` for the run's own, else `other`.",
    "process.pid",
    PROCESS_ROLE,
)
VISIBLE: Final = _gpu(
    "tensormeter.gpu.visible",
    "gauge",
    "1",
    "1 if a process of the run may use the GPU (`CUDA_VISIBLE_DEVICES`), else 0.",
)

GPU_INSTRUMENTS: Final = (
    UTILIZATION,
    MEMORY_USAGE,
    MEMORY_LIMIT,
    MEMORY_UTILIZATION,
    IO,
    ERRORS,
    POWER,
    ENERGY,
    TEMPERATURE,
    FAN_SPEED,
    CLOCK,
    POWER_LIMIT,
    THROTTLED,
    MEMORY_ACTIVITY,
    SM_ACTIVITY,
    SM_OCCUPANCY,
    TENSOR_ACTIVITY,
    DRAM_ACTIVITY,
    PCIE_THROUGHPUT,
    NVLINK_IO,
    XID_ERRORS,
    PROCESS_MEMORY,
    VISIBLE,
)


def visible_to(devices: str | None, number: int, *uuids: str) -> bool:
    """Whether a process may use a GPU.

    Args:
        devices: Its `CUDA_VISIBLE_DEVICES`; None allows all. Numbers, or the beginnings of UUIDs, separated by commas; what
            follows an entry that names nothing does not count (CUDA C++ Programming Guide, environment variables).
        number: The GPU's, in the order of the bus, which is also CUDA's order where all GPUs are of one model.
        uuids: The GPU's, and those of its MIG devices.
    """
    if devices is None:
        return True
    for entry in (item.strip() for item in devices.split(",")):
        if entry.isdigit():
            if int(entry) == number:
                return True
        elif not entry.startswith(("GPU-", "MIG-")):
            return False
        elif any(uuid.startswith(entry) for uuid in uuids):
            return True
    return False


class Monotonic:
    """A counter of the driver's that wraps, or begins anew with a reset, as a total that does neither."""

    def __init__(self) -> None:
        self._last = 0
        self._total = 0

    def add(self, reading: int) -> int:
        """The total after this reading."""
        self._total += reading - self._last if reading >= self._last else reading
        self._last = reading
        return self._total
