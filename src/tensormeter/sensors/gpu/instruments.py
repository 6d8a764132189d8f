"""Instruments for GPUs of all vendors.

Names that start with `hw.` come from the semantic conventions, which define no names for the other instruments.
"""

from typing import Final

from tensormeter.conventions.semconv import PROCESS_ROLE
from tensormeter.sensors.instrument import Instrument, Kind

__all__ = ["GPU_INSTRUMENTS", "Monotonic", "visible_to"]

_GPU: Final = ("hw.id", "hw.name", "hw.type", "hw.parent")
"""Attributes of a GPU: UUID, name such as `GPU 0`, the type `gpu`, and, for a MIG device, the UUID of its GPU."""


def _gpu(name: str, kind: Kind, unit: str, description: str, *attributes: str) -> Instrument:
    return Instrument(name, kind, unit, description, (*_GPU, *attributes))


UTILIZATION: Final = _gpu(
    "hw.gpu.utilization",
    "gauge",
    "1",
    "Fraction of time during which the GPU ran kernels (`general`), encoded video (`encoder`) or decoded video (`decoder`).",
    "hw.gpu.task",
)
MEMORY_USAGE: Final = _gpu("hw.gpu.memory.usage", "updowncounter", "By", "GPU memory used by all processes.")
MEMORY_LIMIT: Final = _gpu(
    "hw.gpu.memory.limit",
    "updowncounter",
    "By",
    "Total memory of the GPU.",
    "hw.model",
    "hw.vendor",
    "hw.driver_version",
)
MEMORY_UTILIZATION: Final = _gpu("hw.gpu.memory.utilization", "gauge", "1", "Fraction of GPU memory in use.")
IO: Final = _gpu("hw.gpu.io", "counter", "By", "Bytes transferred over PCIe.", "network.io.direction")
ERRORS: Final = _gpu(
    "hw.errors",
    "counter",
    "{error}",
    "Number of ECC errors since the driver was loaded, by type (`corrected`, `uncorrected`).",
    "error.type",
)
POWER: Final = _gpu("hw.power", "gauge", "W", "Power consumption.")
ENERGY: Final = _gpu("hw.energy", "counter", "J", "Energy consumed since the driver was loaded.")
TEMPERATURE: Final = _gpu(
    "hw.temperature",
    "gauge",
    "Cel",
    "Temperature of the GPU chip (`gpu`) and the GPU memory (`memory`).",
    "hw.sensor_location",
)
FAN_SPEED: Final = _gpu(
    "hw.fan.speed_ratio", "gauge", "1", "Fan speed as a fraction of the maximum.", "hw.sensor_location"
)

CLOCK: Final = _gpu(
    "tensormeter.gpu.clock.frequency",
    "gauge",
    "Hz",
    "Frequency of each clock (`graphics`, `sm`, `memory`, `video`).",
    "tensormeter.gpu.clock",
)
POWER_LIMIT: Final = _gpu("tensormeter.gpu.power.limit", "gauge", "W", "Power limit of the GPU.")
THROTTLED: Final = _gpu(
    "tensormeter.gpu.throttled",
    "gauge",
    "1",
    "1 if the reason in `tensormeter.gpu.throttle.reason` currently reduces the clock frequencies, otherwise 0.",
    "tensormeter.gpu.throttle.reason",
)
MEMORY_ACTIVITY: Final = _gpu(
    "tensormeter.gpu.memory.activity", "gauge", "1", "Fraction of time during which GPU memory was read or written."
)
SM_ACTIVITY: Final = _gpu(
    "tensormeter.gpu.sm.activity",
    "gauge",
    "1",
    "Fraction of multiprocessors that were busy, averaged since the last sample.",
)
SM_OCCUPANCY: Final = _gpu(
    "tensormeter.gpu.sm.occupancy",
    "gauge",
    "1",
    "Number of resident warps as a fraction of the maximum, averaged since the last sample.",
)
TENSOR_ACTIVITY: Final = _gpu(
    "tensormeter.gpu.tensor.activity",
    "gauge",
    "1",
    "Fraction of time since the last sample during which the tensor cores were active.",
)
DRAM_ACTIVITY: Final = _gpu(
    "tensormeter.gpu.dram.activity",
    "gauge",
    "1",
    "Fraction of the memory bandwidth that was used since the last sample.",
)
PCIE_THROUGHPUT: Final = _gpu(
    "tensormeter.gpu.pcie.throughput",
    "gauge",
    "By/s",
    "PCIe transfer rate over the last 20 ms. It is reported only if the driver has no counters for `hw.gpu.io`.",
    "network.io.direction",
)
NVLINK_IO: Final = _gpu(
    "tensormeter.gpu.nvlink.io",
    "counter",
    "By",
    "Bytes transferred over all NVLink connections.",
    "network.io.direction",
)
XID_ERRORS: Final = _gpu(
    "tensormeter.gpu.xid.errors",
    "counter",
    "{error}",
    "Number of errors that the NVIDIA driver has reported since sampling began, by error number (XID).",
    "tensormeter.gpu.xid",
)
PROCESS_MEMORY: Final = _gpu(
    "tensormeter.gpu.process.memory.usage",
    "updowncounter",
    "By",
    "GPU memory used by each process. The role is `trainer` for processes of the run, otherwise `other`.",
    "process.pid",
    PROCESS_ROLE,
)
VISIBLE: Final = _gpu(
    "tensormeter.gpu.visible",
    "gauge",
    "1",
    "1 if `CUDA_VISIBLE_DEVICES` or its AMD equivalent lets a process of the run use the GPU, otherwise 0.",
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
    """Return whether a process may use a GPU.

    Args:
        devices: `CUDA_VISIBLE_DEVICES` of the process: comma-separated numbers or UUID prefixes; None allows all GPUs.
            Entries after an invalid one are ignored (CUDA C++ Programming Guide, environment variables).
        number: Number of the GPU in bus order, which equals CUDA's order if all GPUs are of the same model.
        uuids: UUIDs of the GPU and of its MIG devices.
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
    """Monotonic total of a driver's counter, which may wrap around or be reset."""

    def __init__(self) -> None:
        self._last = 0
        self._total = 0

    def add(self, reading: int) -> int:
        """Add a reading, and return the total."""
        self._total += reading - self._last if reading >= self._last else reading
        self._last = reading
        return self._total
