"""The limits and usage of a container or job, if its limits are lower than the machine's resources."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from tensormeter.sensors.host.cgroup import Controller, controllers, flat_keyed, number
from tensormeter.sensors.instrument import Instrument, Observed, Reading

__all__ = ["ContainerSensor"]

_CPU_TIME: Final = Instrument(
    "container.cpu.time", "counter", "s", "CPU time used by all processes in the container.", ("cpu.mode",)
)
_MEMORY_USAGE: Final = Instrument(
    "container.memory.usage",
    "updowncounter",
    "By",
    "Memory that counts toward the limit, including the page cache.",
)
_WORKING_SET: Final = Instrument(
    "container.memory.working_set",
    "updowncounter",
    "By",
    "Memory that counts toward the limit, excluding page cache that can be dropped.",
)
_MEMORY_LIMIT: Final = Instrument(
    "tensormeter.container.memory.limit", "updowncounter", "By", "Memory limit of the container."
)
_OOM_KILLS: Final = Instrument(
    "tensormeter.container.memory.oom_kills",
    "counter",
    "{kill}",
    "Number of processes killed because the memory limit was reached.",
)
_CPU_LIMIT: Final = Instrument(
    "tensormeter.container.cpu.limit", "gauge", "{cpu}", "CPU limit of the container, in processors."
)
_THROTTLED: Final = Instrument(
    "tensormeter.container.cpu.throttled_time",
    "counter",
    "s",
    "Time during which threads could not run because of the CPU limit.",
)


class ContainerSensor:
    """Sensor of control groups (versions 1 and 2). It reads nothing if no limit applies."""

    name = "container"
    instruments = (_CPU_TIME, _MEMORY_USAGE, _WORKING_SET, _MEMORY_LIMIT, _OOM_KILLS, _CPU_LIMIT, _THROTTLED)

    def __init__(self, root: Path = Path("/")) -> None:
        """
        Args:
            root: Folder that contains `proc` and `sys`.
        """
        self._controllers = controllers(root)
        self._memory_size = psutil.virtual_memory().total
        self._processors = psutil.cpu_count() or 1

    def readings(self) -> Iterable[Reading]:
        if "memory" in self._controllers:
            yield "memory limit", self._memory
        if "cpu" in self._controllers:
            yield "CPU limit", self._cpu

    def close(self) -> None:
        pass

    def _memory(self) -> Iterable[Observed]:
        memory = self._controllers["memory"]
        unified = memory.unified
        name = "memory.max" if unified else "memory.limit_in_bytes"
        limit_and_folder = memory.tightest(lambda folder: number(folder / name))
        # In version 1, a number near 2**63 means "no limit".
        if limit_and_folder is None or limit_and_folder[0] >= self._memory_size:
            return
        limit, folder = limit_and_folder
        yield _MEMORY_LIMIT, int(limit), {}
        usage = number(folder / ("memory.current" if unified else "memory.usage_in_bytes"))
        if usage is not None:
            yield _MEMORY_USAGE, usage, {}
            idle = flat_keyed(folder / "memory.stat").get("inactive_file" if unified else "total_inactive_file", 0)
            yield _WORKING_SET, max(0, usage - idle), {}
        kills = flat_keyed(folder / ("memory.events" if unified else "memory.oom_control")).get("oom_kill")
        if kills is not None:
            yield _OOM_KILLS, kills, {}

    def _cpu(self) -> Iterable[Observed]:
        cpu = self._controllers["cpu"]
        limit_and_folder = cpu.tightest(_quota if cpu.unified else _quota_v1)
        if limit_and_folder is None or limit_and_folder[0] >= self._processors:
            return
        limit, folder = limit_and_folder
        yield _CPU_LIMIT, limit, {}
        stat = flat_keyed(folder / "cpu.stat")
        if cpu.unified:
            yield _THROTTLED, stat.get("throttled_usec", 0) / 1e6, {}
            yield _CPU_TIME, stat["user_usec"] / 1e6, {"cpu.mode": "user"}
            yield _CPU_TIME, stat["system_usec"] / 1e6, {"cpu.mode": "system"}
        else:
            yield _THROTTLED, stat.get("throttled_time", 0) / 1e9, {}
            yield from _cpu_time_v1(self._controllers.get("cpuacct"))


def _quota(folder: Path) -> float | None:
    """Return the number of processors that `cpu.max` allows, or None for no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except OSError:
        return None  # the root group has no such file
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota, period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _cpu_time_v1(accounting: Controller | None) -> Iterable[Observed]:
    if accounting is None:
        return
    for mode, name in (("user", "cpuacct.usage_user"), ("system", "cpuacct.usage_sys")):
        nanoseconds = number(accounting.folders[0] / name)
        if nanoseconds is not None:
            yield _CPU_TIME, nanoseconds / 1e9, {"cpu.mode": mode}
