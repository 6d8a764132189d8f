"""The sensor for NVIDIA GPUs, which uses NVML (`nvidia-ml-py`, module `pynvml`). Without a driver, it reads nothing.

Each quantity is a separate reading. If a GPU model, driver or MIG device does not support a reading, that reading is
not tried again, and the others still work.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from tensormeter.sensors.gpu import instruments as gpu
from tensormeter.sensors.gpu.nvidia_device import Device
from tensormeter.sensors.gpu.nvidia_profile import Profile
from tensormeter.sensors.instrument import Instrument, Observed, Reading
from tensormeter.sensors.targets import Watch

__all__ = ["NvidiaSensor"]

_ALL_LINKS: Final = 0xFFFFFFFF
_VALUE_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of NVML's value union, in the order of the enumeration nvmlValueType_t."""

_THROTTLE_REASONS: Final = {
    "idle": 0x1,
    "applications_clocks_setting": 0x2,
    "power_cap": 0x4,
    "hardware_slowdown": 0x8,
    "sync_boost": 0x10,
    "thermal": 0x20,
    "hardware_thermal": 0x40,
    "power_brake": 0x80,
    "display_clock_setting": 0x100,
}
"""Bits of NVML's nvmlClocksEventReasons, by the value of the attribute `tensormeter.gpu.throttle.reason`."""


class NvidiaSensor:
    """Sensor of all NVIDIA GPUs in the machine and their MIG devices."""

    name = "nvidia"
    instruments: tuple[Instrument, ...] = ()

    def __init__(self, watch: "Watch") -> None:
        self._watch = watch
        self._nvml: Any = None
        self._gpus: dict[int, _Gpu] = {}
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except (
            pynvml.NVMLError_LibraryNotFound,
            pynvml.NVMLError_DriverNotLoaded,
            pynvml.NVMLError_NoPermission,
        ):
            return
        self._nvml = pynvml
        self._count = pynvml.nvmlDeviceGetCount()
        if self._count:
            self.instruments = gpu.GPU_INSTRUMENTS

    def readings(self) -> Iterable[Reading]:
        for number in range(self._count):
            if number not in self._gpus:
                try:
                    self._gpus[number] = _Gpu(self._nvml, number, self._watch)
                except Exception as error:
                    yield f"GPU {number}", partial(_fail, error)
                    continue
            yield from self._gpus[number].readings()

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()


def _fail(error: Exception) -> Iterable[Observed]:
    raise error


class _Gpu(Device):
    def __init__(self, nvml: Any, number: int, watch: "Watch") -> None:
        super().__init__(nvml, nvml.nvmlDeviceGetHandleByIndex(number), f"GPU {number}", {})
        self._number = number
        self._watch = watch
        self._counts: dict[int, gpu.Monotonic] = {}
        self._xids: dict[int, int] = {}
        self._parts = self._mig_devices()
        self._add_readings()

    def readings(self) -> Iterable[Reading]:
        yield from super().readings()
        for part in self._parts:
            yield from part.readings()

    def _add_readings(self) -> None:
        nvml, handle = self.nvml, self.handle
        scalars: list[tuple[Instrument, str, float, str, tuple[int, ...], dict[str, str]]] = [
            (gpu.POWER, "power", 1e-3, "nvmlDeviceGetPowerUsage", (), {}),
            (gpu.POWER_LIMIT, "power limit", 1e-3, "nvmlDeviceGetEnforcedPowerLimit", (), {}),
            (gpu.ENERGY, "energy", 1e-3, "nvmlDeviceGetTotalEnergyConsumption", (), {}),
        ]
        for clock in ("graphics", "sm", "memory", "video"):
            domain = getattr(nvml, f"NVML_CLOCK_{'MEM' if clock == 'memory' else clock.upper()}")
            attributes = {"tensormeter__gpu__clock": clock}
            scalars.append((gpu.CLOCK, f"{clock} clock", 1e6, "nvmlDeviceGetClockInfo", (domain,), attributes))
        for error, kind in (
            ("corrected", nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ("uncorrected", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        ):
            ecc = (kind, nvml.NVML_VOLATILE_ECC)
            attributes = {"error__type": error}
            scalars.append((gpu.ERRORS, f"{error} errors", 1, "nvmlDeviceGetTotalEccErrors", ecc, attributes))
        for instrument, quantity, scale, function, arguments, attributes in scalars:
            self.add(quantity, partial(self._scalar, instrument, scale, function, arguments, attributes))
        self.add("utilization", self._utilization)
        self.add("encoder", partial(self._codec, "encoder"))
        self.add("decoder", partial(self._codec, "decoder"))
        self.add("memory", self.memory)
        self.add("temperature", self._temperature)
        self.add("memory temperature", self._memory_temperature)
        self.add("fans", self._fans)
        self.add("PCIe", self._pcie)
        self.add("NVLink", self._nvlink)
        self.add("throttling", self._throttling)
        self.add("XID errors", self._xid_errors)
        self.add("processes", partial(self.processes, self._watch))
        self.add("visibility", self._visibility)
        profile = Profile(nvml, lambda sample: nvml.nvmlGpmSampleGet(handle, sample), handle)
        self.add("profile", partial(self.profile, profile))

    def _scalar(
        self,
        instrument: Instrument,
        scale: float,
        function: str,
        arguments: tuple[int, ...],
        attributes: dict[str, str],
    ) -> Iterable[Observed]:
        reading = getattr(self.nvml, function)(self.handle, *arguments)
        yield self.value(instrument, reading if scale == 1 else reading * scale, **attributes)

    def _utilization(self) -> Iterable[Observed]:
        rates = self.nvml.nvmlDeviceGetUtilizationRates(self.handle)
        yield self.value(gpu.UTILIZATION, rates.gpu / 100, hw__gpu__task="general")
        yield self.value(gpu.MEMORY_ACTIVITY, rates.memory / 100)

    def _codec(self, task: str) -> Iterable[Observed]:
        percent, _ = getattr(self.nvml, f"nvmlDeviceGet{task.capitalize()}Utilization")(self.handle)
        yield self.value(gpu.UTILIZATION, percent / 100, hw__gpu__task=task)

    def _temperature(self) -> Iterable[Observed]:
        nvml = self.nvml
        try:
            degrees = nvml.nvmlDeviceGetTemperatureV(self.handle, nvml.NVML_TEMPERATURE_GPU)
        except (AttributeError, nvml.NVMLError_FunctionNotFound):  # drivers before 570
            degrees = nvml.nvmlDeviceGetTemperature(self.handle, nvml.NVML_TEMPERATURE_GPU)
        yield self.value(gpu.TEMPERATURE, degrees, hw__sensor_location="gpu")

    def _memory_temperature(self) -> Iterable[Observed]:
        (degrees,) = self._fields(self.nvml.NVML_FI_DEV_MEMORY_TEMP)
        yield self.value(gpu.TEMPERATURE, degrees, hw__sensor_location="memory")

    def _fans(self) -> Iterable[Observed]:
        for fan in range(self.nvml.nvmlDeviceGetNumFans(self.handle)):
            percent = self.nvml.nvmlDeviceGetFanSpeed_v2(self.handle, fan)
            yield self.value(gpu.FAN_SPEED, percent / 100, hw__sensor_location=f"fan{fan}")

    def _pcie(self) -> Iterable[Observed]:
        nvml = self.nvml
        try:
            sent, received = self._totals(nvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, nvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES)
        except self.absences:
            # This method takes 20 ms per direction, so it is only the fallback.
            self.add("PCIe", self._pcie_throughput)
            yield from self._pcie_throughput()
            return
        yield self.value(gpu.IO, sent, network__io__direction="transmit")
        yield self.value(gpu.IO, received, network__io__direction="receive")

    def _pcie_throughput(self) -> Iterable[Observed]:
        nvml = self.nvml
        for direction, counter in (
            ("transmit", nvml.NVML_PCIE_UTIL_TX_BYTES),
            ("receive", nvml.NVML_PCIE_UTIL_RX_BYTES),
        ):
            kilobytes = nvml.nvmlDeviceGetPcieThroughput(self.handle, counter)
            yield self.value(gpu.PCIE_THROUGHPUT, kilobytes * 1000, network__io__direction=direction)

    def _nvlink(self) -> Iterable[Observed]:
        nvml = self.nvml
        sent, received = self._totals(
            (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, _ALL_LINKS),
            (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, _ALL_LINKS),
        )
        yield self.value(gpu.NVLINK_IO, sent * 1024, network__io__direction="transmit")
        yield self.value(gpu.NVLINK_IO, received * 1024, network__io__direction="receive")

    def _throttling(self) -> Iterable[Observed]:
        nvml = self.nvml
        try:
            reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle)
        except nvml.NVMLError_FunctionNotFound:  # drivers before 535
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)
        for reason, bit in _THROTTLE_REASONS.items():
            yield self.value(gpu.THROTTLED, int(bool(reasons & bit)), tensormeter__gpu__throttle__reason=reason)

    def _xid_errors(self) -> Iterable[Observed]:
        nvml = self.nvml
        if not hasattr(self, "_events"):
            self._events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self.handle, nvml.nvmlEventTypeXidCriticalError, self._events)
        while True:
            try:
                xid = int(nvml.nvmlEventSetWait_v2(self._events, 0).eventData)
            except nvml.NVMLError_Timeout:
                break
            self._xids[xid] = self._xids.get(xid, 0) + 1
        for xid, count in self._xids.items():
            yield self.value(gpu.XID_ERRORS, count, tensormeter__gpu__xid=xid)

    def _visibility(self) -> Iterable[Observed]:
        processes = self._watch.processes
        for device, uuids in [
            (self, (self.uuid, *(part.uuid for part in self._parts))),
            *((part, (self.uuid, part.uuid)) for part in self._parts),
        ]:
            visible = any(gpu.visible_to(process.visible_gpus, self._number, *uuids) for process in processes)
            yield device.value(gpu.VISIBLE, int(visible))

    def _totals(self, *fields: Any) -> list[int]:
        readings = self._fields(*fields)
        keys = [field[0] if isinstance(field, tuple) else field for field in fields]
        return [
            self._counts.setdefault(key, gpu.Monotonic()).add(int(n)) for key, n in zip(keys, readings, strict=True)
        ]

    def _fields(self, *fields: Any) -> list[float]:
        """Return the values of the NVML fields with these numbers. If some cannot be read, raise the first one's error."""
        values = []
        for item in self.nvml.nvmlDeviceGetFieldValues(self.handle, list(fields)):
            if item.nvmlReturn != self.nvml.NVML_SUCCESS:
                raise self.nvml.NVMLError(item.nvmlReturn)
            values.append(getattr(item.value, _VALUE_MEMBERS[item.valueType]))
        return values

    def _mig_devices(self) -> "list[Device]":
        nvml = self.nvml
        try:
            enabled, _ = nvml.nvmlDeviceGetMigMode(self.handle)
            if enabled != nvml.NVML_DEVICE_MIG_ENABLE:
                return []
            count = nvml.nvmlDeviceGetMaxMigDeviceCount(self.handle)
        except self.absences:
            return []
        parts = []
        for index in range(count):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(self.handle, index)
            except nvml.NVMLError_NotFound:
                continue  # no MIG device has this index
            part = Device(nvml, handle, f"{self.name} MIG {index}", {"hw.parent": self.uuid})
            part.add("memory", part.memory)
            part.add("processes", partial(part.processes, self._watch))
            instance = nvml.nvmlDeviceGetGpuInstanceId(handle)
            profile = Profile(nvml, partial(self._mig_sample, instance), self.handle)
            part.add("profile", partial(part.profile, profile))
            parts.append(part)
        return parts

    def _mig_sample(self, instance: int, sample: Any) -> Any:
        return self.nvml.nvmlGpmMigSampleGet(self.handle, instance, sample)
