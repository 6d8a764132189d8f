"""The base class for GPUs and MIG devices: an NVML handle, and readings that are dropped if unsupported."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tensormeter.conventions.semconv import PROCESS_ROLE
from tensormeter.sensors.gpu import instruments
from tensormeter.sensors.gpu.nvidia_profile import Profile
from tensormeter.sensors.instrument import AbsentError, Instrument, Observed, Reading
from tensormeter.sensors.targets import Watch

__all__ = ["Device"]


class Device:
    """A GPU or MIG device, with its handle and readings.

    A reading that the device does not support is tried only once.
    """

    def __init__(self, nvml: Any, handle: Any, name: str, attributes: dict[str, str]) -> None:
        self.nvml = nvml
        self.handle = handle
        self.name = name
        self.uuid: str = nvml.nvmlDeviceGetUUID(handle)
        self.attributes = {"hw.id": self.uuid, "hw.name": name, "hw.type": "gpu", **attributes}
        self._table: dict[str, Callable[[], Iterable[Observed]]] = {}
        self.absences = (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_InvalidArgument,
            nvml.NVMLError_NoPermission,
        )

    def add(self, quantity: str, read: Callable[[], Iterable[Observed]]) -> None:
        """Add a reading, or replace the existing one for the same quantity."""
        self._table[quantity] = read

    def readings(self) -> Iterable[Reading]:
        """Return all readings that are not known to be unsupported."""
        return [(f"{quantity} of {self.name}", partial(self._read, quantity)) for quantity in self._table]

    def _read(self, quantity: str) -> Iterable[Observed]:
        try:
            yield from self._table[quantity]()
        except (AbsentError, *self.absences):
            del self._table[quantity]
            raise AbsentError from None

    def value(self, instrument: Instrument, value: float, **attributes: str | int) -> Observed:
        """Create an observation of this device. Keyword arguments are attributes; `__` in a name becomes `.`."""
        more = {name.replace("__", "."): value for name, value in attributes.items()}
        return instrument, value, {**self.attributes, **more}

    def memory(self) -> Iterable[Observed]:
        nvml = self.nvml
        try:
            # In version 2, the used memory excludes memory that the driver reserves for itself.
            info = nvml.nvmlDeviceGetMemoryInfo(self.handle, version=nvml.nvmlMemory_v2)
        except nvml.NVMLError_FunctionNotFound:
            info = nvml.nvmlDeviceGetMemoryInfo(self.handle)
        yield self.value(instruments.MEMORY_USAGE, info.used)
        if info.total:
            yield self.value(instruments.MEMORY_UTILIZATION, info.used / info.total)
        yield self.value(
            instruments.MEMORY_LIMIT,
            info.total,
            hw__model=nvml.nvmlDeviceGetName(self.handle),
            hw__vendor="NVIDIA",
            hw__driver_version=nvml.nvmlSystemGetDriverVersion(),
        )

    def processes(self, watch: "Watch") -> Iterable[Observed]:
        own = {process.pid for process in watch.processes}
        for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle):
            if process.usedGpuMemory is not None:
                role = "trainer" if process.pid in own else "other"
                attributes = {**self.attributes, "process.pid": process.pid, PROCESS_ROLE: role}
                yield instruments.PROCESS_MEMORY, process.usedGpuMemory, attributes

    def profile(self, profile: Profile) -> Iterable[Observed]:
        for instrument, share in profile.read():
            yield self.value(instrument, share)
