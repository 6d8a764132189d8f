"""Limits that a container or job scheduler sets on the processes in it, where they are lower than what the machine has."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from tensormeter.sensors.host.cgroup import Controller, controllers, flat_keyed, number
from tensormeter.sensors.instrument import Instrument, Observed, Reading

__all__ = ["ContainerSensor"]

_CPU_TIME: Final = Instrument(
    "container.cpu.time", "counter", "s", "Processor time of everything in the container.", ("cpu.mode",)
)
_MEMORY_USAGE: Final = Instrument(
    "container.memory.usage", "updowncounter", "By", "Memory that counts against the limit, page cache included."
)
_WORKING_SET: Final = Instrument(
    "container.memory.working_set",
    "updowncounter",
    "By",
    "Memory that counts against the limit, less page cache that can be dropped.",
)
_MEMORY_LIMIT: Final = Instrument("tensormeter.container.memory.limit", "updowncounter", "By", "The limit on memory.")
_OOM_KILLS: Final = Instrument(
    "tensormeter.container.memory.oom_kills", "counter", "{kill}", "Processes killed because the limit was reached."
)
_CPU_LIMIT: Final = Instrument("tensormeter.container.cpu.limit", "gauge", "{cpu}", "The limit on processors.")
_THROTTLED: Final = Instrument(
    "tensormeter.container.cpu.throttled_time",
    "counter",
    "s",
    "Time for which runnable threads had to wait because of the limit on processors.",
)


class ContainerSensor:
    """Reads control groups, version 1 and 2. Silent where no limit binds."""

    name = "container"
    instruments = (_CPU_TIME, _MEMORY_USAGE, _WORKING_SET, _MEMORY_LIMIT, _OOM_KILLS, _CPU_LIMIT, _THROTTLED)

    def __init__(self, root: Path = Path("/")) -> None:
        """
        Args:
            root: Where `proc` and `sys` are.
        """
        self._controllers = controllers(root)
        self._memory_size = psutil.virtual_memory().total
        self._processors = psutil.cpu_count() or 1

    def readings(self) -> Iterable[Reading]:
        if "memory" in self._controllers:
            yield "memory limit", self._memory
        if "cpu" in self._controllers:
            yield "processor limit", self._cpu

    def close(self) -> None:
        pass

    def _memory(self) -> Iterable[Observed]:
        memory = self._controllers["memory"]
        unified = memory.unified
        name = "memory.max" if unified else "memory.limit_in_bytes"
        found = memory.tightest(lambda folder: number(folder / name))
        if found is None or found[0] >= self._memory_size:  # version 1 says "none" by a number near 2**63
            return
        limit, folder = found
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
        found = cpu.tightest(_quota if cpu.unified else _quota_v1)
        if found is None or found[0] >= self._processors:
            return
        limit, folder = found
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
    """Processors that `cpu.max` allows."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except OSError:
        return None  # the root group has none
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
