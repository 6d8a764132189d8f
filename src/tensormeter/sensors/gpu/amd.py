"""The sensor for AMD GPUs, which uses AMD SMI (`amdsmi` from ROCm or PyPI). Without a driver, it reads nothing.

The sensor has not been run on an AMD GPU yet. Tests run amdsmi's Python code with a fake native library.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.semconv import PROCESS_ROLE
from tensormeter.sensors.gpu import instruments as gpu
from tensormeter.sensors.instrument import AbsentError, Instrument, Observed, Reading
from tensormeter.sensors.targets import Watch

__all__ = ["AmdSensor"]

_DRIVER: Final = Path("/sys/module/amdgpu")


class AmdSensor:
    """Sensor of all AMD GPUs in the machine."""

    name = "amd"
    instruments: tuple[Instrument, ...] = ()

    def __init__(self, watch: "Watch", driver: Path = _DRIVER) -> None:
        """
        Args:
            watch: Processes of the run to observe.
            driver: Folder that exists if the driver is loaded. If the folder does not exist, amdsmi is not imported,
                because amdsmi would print an error.
        """
        self._watch = watch
        self._smi: Any = None
        self._gpus: list[_Gpu] = []
        if not driver.exists():
            return
        try:
            import amdsmi
        except (ImportError, OSError, KeyError, AttributeError):  # without its library, amdsmi fails in various ways
            return
        amdsmi.amdsmi_init()
        self._smi = amdsmi
        self._gpus = [_Gpu(amdsmi, handle, i, watch) for i, handle in enumerate(amdsmi.amdsmi_get_processor_handles())]
        if self._gpus:
            self.instruments = gpu.GPU_INSTRUMENTS

    def readings(self) -> Iterable[Reading]:
        for device in self._gpus:
            yield from device.readings()

    def close(self) -> None:
        if self._smi is not None:
            self._smi.amdsmi_shut_down()


class _Gpu:
    """A GPU. An unsupported reading is tried only once."""

    def __init__(self, smi: Any, handle: Any, number: int, watch: "Watch") -> None:
        self._smi = smi
        self._handle = handle
        self._number = number
        self._watch = watch
        self._uuid: str = smi.amdsmi_get_gpu_device_uuid(handle)
        self._attributes = {"hw.id": self._uuid, "hw.name": f"GPU {number}", "hw.type": "gpu"}
        self._table: dict[str, Callable[[], Iterable[Observed]]] = {
            "utilization": self._activity,
            "memory": self._memory,
            "power": self._power,
            "power limit": self._power_limit,
            "energy": self._energy,
            "temperature": partial(self._temperature, "gpu", smi.AmdSmiTemperatureType.HOTSPOT),
            "memory temperature": partial(self._temperature, "memory", smi.AmdSmiTemperatureType.VRAM),
            "graphics clock": partial(self._clock, "graphics", smi.AmdSmiClkType.GFX),
            "memory clock": partial(self._clock, "memory", smi.AmdSmiClkType.MEM),
            "fan": self._fan,
            "errors": self._errors,
            "processes": self._processes,
            "visibility": self._visibility,
        }

    def readings(self) -> Iterable[Reading]:
        return [(f"{quantity} of GPU {self._number}", partial(self._read, quantity)) for quantity in self._table]

    def _read(self, quantity: str) -> Iterable[Observed]:
        try:
            yield from self._table[quantity]()
        except AbsentError:
            del self._table[quantity]
            raise
        except self._smi.AmdSmiLibraryException as error:
            if error.get_error_code() not in self._absences():
                raise
            del self._table[quantity]
            raise AbsentError from None

    def _absences(self) -> tuple[int, ...]:
        wrapper = self._smi.amdsmi_interface.amdsmi_wrapper
        return (
            wrapper.AMDSMI_STATUS_NOT_SUPPORTED,
            wrapper.AMDSMI_STATUS_NOT_YET_IMPLEMENTED,
            wrapper.AMDSMI_STATUS_NO_PERM,
            wrapper.AMDSMI_STATUS_INVAL,
        )

    def _value(self, instrument: Instrument, value: float, **attributes: str | int) -> Observed:
        more = {name.replace("__", "."): value for name, value in attributes.items()}
        return instrument, value, {**self._attributes, **more}

    def _activity(self) -> Iterable[Observed]:
        activity = self._smi.amdsmi_get_gpu_activity(self._handle)
        yield self._value(gpu.UTILIZATION, _number(activity["gfx_activity"]) / 100, hw__gpu__task="general")
        yield self._value(gpu.MEMORY_ACTIVITY, _number(activity["umc_activity"]) / 100)

    def _memory(self) -> Iterable[Observed]:
        usage = self._smi.amdsmi_get_gpu_vram_usage(self._handle)
        used, total = usage["vram_used"] << 20, usage["vram_total"] << 20
        yield self._value(gpu.MEMORY_USAGE, used)
        if total:
            yield self._value(gpu.MEMORY_UTILIZATION, used / total)
        yield self._value(
            gpu.MEMORY_LIMIT,
            total,
            hw__model=self._smi.amdsmi_get_gpu_asic_info(self._handle)["market_name"],
            hw__vendor="AMD",
            hw__driver_version=self._smi.amdsmi_get_gpu_driver_info(self._handle)["driver_version"],
        )

    def _power(self) -> Iterable[Observed]:
        power = self._smi.amdsmi_get_power_info(self._handle)
        # MI300 GPUs report the current power; earlier GPUs report the average.
        watts = [power[name] for name in ("current_socket_power", "average_socket_power") if power[name] != "N/A"]
        if not watts:
            raise AbsentError
        yield self._value(gpu.POWER, watts[0])

    def _power_limit(self) -> Iterable[Observed]:
        yield self._value(gpu.POWER_LIMIT, self._smi.amdsmi_get_power_cap_info(self._handle)["power_cap"] / 1e6)

    def _energy(self) -> Iterable[Observed]:
        energy = self._smi.amdsmi_get_energy_count(self._handle)
        yield self._value(gpu.ENERGY, energy["energy_accumulator"] * energy["counter_resolution"] / 1e6)

    def _temperature(self, location: str, sensor: Any) -> Iterable[Observed]:
        metric = self._smi.AmdSmiTemperatureMetric.CURRENT
        degrees = self._smi.amdsmi_get_temp_metric(self._handle, sensor, metric)
        yield self._value(gpu.TEMPERATURE, degrees, hw__sensor_location=location)

    def _clock(self, clock: str, domain: Any) -> Iterable[Observed]:
        megahertz = _number(self._smi.amdsmi_get_clock_info(self._handle, domain)["clk"])
        yield self._value(gpu.CLOCK, megahertz * 1e6, tensormeter__gpu__clock=clock)

    def _fan(self) -> Iterable[Observed]:
        speed = self._smi.amdsmi_get_gpu_fan_speed(self._handle, 0)
        most = self._smi.amdsmi_get_gpu_fan_speed_max(self._handle, 0)
        if not most:
            raise AbsentError
        yield self._value(gpu.FAN_SPEED, speed / most, hw__sensor_location="fan0")

    def _errors(self) -> Iterable[Observed]:
        counts = self._smi.amdsmi_get_gpu_total_ecc_count(self._handle)
        yield self._value(gpu.ERRORS, counts["correctable_count"], error__type="corrected")
        yield self._value(gpu.ERRORS, counts["uncorrectable_count"], error__type="uncorrected")

    def _processes(self) -> Iterable[Observed]:
        own = {process.pid for process in self._watch.processes}
        for process in self._smi.amdsmi_get_gpu_process_list(self._handle):
            role = "trainer" if process["pid"] in own else "other"
            attributes = {**self._attributes, "process.pid": process["pid"], PROCESS_ROLE: role}
            yield gpu.PROCESS_MEMORY, process["memory_usage"]["vram_mem"], attributes

    def _visibility(self) -> Iterable[Observed]:
        visible = any(
            gpu.visible_to(process.visible_gpus, self._number, self._uuid) for process in self._watch.processes
        )
        yield self._value(gpu.VISIBLE, int(visible))


def _number(value: int | str) -> int:
    """Return a number from amdsmi. Raise AbsentError if amdsmi returned `N/A` instead."""
    if isinstance(value, str):
        raise AbsentError
    return value
