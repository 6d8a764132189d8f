"""The machine's `system.*` metrics: processors, memory, swap, disks and network.

Names follow the semantic conventions. The values come from psutil.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import psutil

from tensormeter.sensors.instrument import AbsentError, Instrument, Observed, Reading

__all__ = ["HostSensor"]

_CPU_TIME: Final = Instrument(
    "system.cpu.time", "counter", "s", "Total time that all processors spent in each mode.", ("cpu.mode",)
)
_CPU_UTILIZATION: Final = Instrument(
    "system.cpu.utilization",
    "gauge",
    "1",
    "Fraction of CPU time in each mode since the last sample.",
    ("cpu.mode",),
)
_CPU_COUNT: Final = Instrument("system.cpu.logical.count", "updowncounter", "{cpu}", "Number of logical processors.")
_MEMORY_USAGE: Final = Instrument(
    "system.memory.usage", "updowncounter", "By", "Memory in each state.", ("system.memory.state",)
)
_MEMORY_LIMIT: Final = Instrument("system.memory.limit", "updowncounter", "By", "Total memory of the machine.")
_MEMORY_UTILIZATION: Final = Instrument(
    "system.memory.utilization", "gauge", "1", "Fraction of memory in each state.", ("system.memory.state",)
)
_MEMORY_AVAILABLE: Final = Instrument(
    "system.memory.linux.available", "updowncounter", "By", "Memory available without swapping (Linux)."
)
_PAGING_USAGE: Final = Instrument(
    "system.paging.usage", "updowncounter", "By", "Swap space in each state.", ("system.paging.state",)
)
_PAGING_UTILIZATION: Final = Instrument(
    "system.paging.utilization", "gauge", "1", "Fraction of swap space in each state.", ("system.paging.state",)
)
_PAGING_OPERATIONS: Final = Instrument(
    "system.paging.operations",
    "counter",
    "{operation}",
    "Number of pages swapped in and out (Linux).",
    ("system.paging.direction",),
)
_DISK_IO: Final = Instrument(
    "system.disk.io", "counter", "By", "Bytes read and written.", ("system.device", "disk.io.direction")
)
_DISK_OPERATIONS: Final = Instrument(
    "system.disk.operations",
    "counter",
    "{operation}",
    "Number of reads and writes.",
    ("system.device", "disk.io.direction"),
)
_DISK_IO_TIME: Final = Instrument(
    "system.disk.io_time", "counter", "s", "Time during which the disk was busy (Linux).", ("system.device",)
)
_NETWORK_IO: Final = Instrument(
    "system.network.io",
    "counter",
    "By",
    "Bytes sent and received.",
    ("network.interface.name", "network.io.direction"),
)
_NETWORK_PACKETS: Final = Instrument(
    "system.network.packet.count",
    "counter",
    "{packet}",
    "Number of packets sent and received.",
    ("system.device", "network.io.direction"),
)
_NETWORK_DROPPED: Final = Instrument(
    "system.network.packet.dropped",
    "counter",
    "{packet}",
    "Number of dropped packets.",
    ("network.interface.name", "network.io.direction"),
)
_NETWORK_ERRORS: Final = Instrument(
    "system.network.errors",
    "counter",
    "{error}",
    "Number of network interface errors.",
    ("network.interface.name", "network.io.direction"),
)

_CPU_MODES: Final = {"irq": "interrupt", "softirq": "interrupt"}
"""Processor modes whose names differ between psutil and the semantic conventions."""

_EXCLUDED_CPU_MODES: Final = frozenset({"guest", "guest_nice"})
"""Processor modes whose time Linux also counts as `user` or `nice`."""

_SWAP_PAGE: Final = 4096
"""Page size, in bytes, that psutil uses to convert swapped pages to bytes."""

_NO_DISKS: Final = ("loop", "ram", "zram", "fd", "sr")
_NO_INTERFACES: Final = ("lo", "veth", "docker", "br-", "cali", "virbr", "tap", "ifb", "dummy")
"""Name prefixes of virtual interfaces, which count other interfaces' packets again.

A Kubernetes node can have hundreds of these interfaces.
"""


class HostSensor:
    """Sensor of the machine's `system.*` metrics. A sample takes about a millisecond."""

    name = "host"
    instruments = (
        _CPU_TIME,
        _CPU_UTILIZATION,
        _CPU_COUNT,
        _MEMORY_USAGE,
        _MEMORY_LIMIT,
        _MEMORY_UTILIZATION,
        _MEMORY_AVAILABLE,
        _PAGING_USAGE,
        _PAGING_UTILIZATION,
        _PAGING_OPERATIONS,
        _DISK_IO,
        _DISK_OPERATIONS,
        _DISK_IO_TIME,
        _NETWORK_IO,
        _NETWORK_PACKETS,
        _NETWORK_DROPPED,
        _NETWORK_ERRORS,
    )

    def __init__(self) -> None:
        self._cpu: Mapping[str, float] = {}

    def readings(self) -> Iterable[Reading]:
        return (
            ("processors", self._processors),
            ("memory", self._memory),
            ("swap", self._swap),
            ("disks", self._disks),
            ("network", self._network),
        )

    def close(self) -> None:
        pass

    def _processors(self) -> Iterable[Observed]:
        now: dict[str, float] = {}
        for field, seconds in psutil.cpu_times()._asdict().items():
            if field not in _EXCLUDED_CPU_MODES:
                mode = _CPU_MODES.get(field, field)
                now[mode] = now.get(mode, 0.0) + seconds
        before, self._cpu = self._cpu, now
        for mode, seconds in now.items():
            yield _CPU_TIME, seconds, {"cpu.mode": mode}
        # On Linux, idle and iowait may decrease by a tick (Documentation/filesystems/proc.rst).
        spent = {mode: max(0.0, seconds - before.get(mode, seconds)) for mode, seconds in now.items()}
        total = sum(spent.values())
        if total > 0:
            for mode, seconds in spent.items():
                yield _CPU_UTILIZATION, seconds / total, {"cpu.mode": mode}
        yield _CPU_COUNT, psutil.cpu_count() or 1, {}

    def _memory(self) -> Iterable[Observed]:
        memory = psutil.virtual_memory()
        yield _MEMORY_LIMIT, memory.total, {}
        states = {state: getattr(memory, state, None) for state in ("used", "free", "buffers", "cached")}
        for state, size in states.items():
            if size is not None:
                yield _MEMORY_USAGE, size, {"system.memory.state": state}
                yield _MEMORY_UTILIZATION, size / memory.total, {"system.memory.state": state}
        if sys.platform == "linux":
            yield _MEMORY_AVAILABLE, memory.available, {}

    def _swap(self) -> Iterable[Observed]:
        swap = psutil.swap_memory()
        for state, size in (("used", swap.used), ("free", swap.free)):
            yield _PAGING_USAGE, size, {"system.paging.state": state}
            if swap.total:
                yield _PAGING_UTILIZATION, size / swap.total, {"system.paging.state": state}
        if sys.platform == "linux":
            yield _PAGING_OPERATIONS, swap.sin // _SWAP_PAGE, {"system.paging.direction": "in"}
            yield _PAGING_OPERATIONS, swap.sout // _SWAP_PAGE, {"system.paging.direction": "out"}

    def _disks(self) -> Iterable[Observed]:
        disks = psutil.disk_io_counters(perdisk=True)
        if not disks:
            raise AbsentError
        for name, disk in disks.items():
            if name.startswith(_NO_DISKS) or _is_partition(name):
                continue
            device = {"system.device": name}
            read, write = device | {"disk.io.direction": "read"}, device | {"disk.io.direction": "write"}
            yield _DISK_IO, disk.read_bytes, read
            yield _DISK_IO, disk.write_bytes, write
            yield _DISK_OPERATIONS, disk.read_count, read
            yield _DISK_OPERATIONS, disk.write_count, write
            if hasattr(disk, "busy_time"):
                yield _DISK_IO_TIME, disk.busy_time / 1000, device

    def _network(self) -> Iterable[Observed]:
        for name, counters in psutil.net_io_counters(pernic=True).items():
            if name.startswith(_NO_INTERFACES):
                continue
            for direction, amount, packets, dropped, errors in (
                ("transmit", counters.bytes_sent, counters.packets_sent, counters.dropout, counters.errout),
                ("receive", counters.bytes_recv, counters.packets_recv, counters.dropin, counters.errin),
            ):
                attributes = {"network.interface.name": name, "network.io.direction": direction}
                yield _NETWORK_IO, amount, attributes
                yield _NETWORK_PACKETS, packets, {"system.device": name, "network.io.direction": direction}
                yield _NETWORK_DROPPED, dropped, attributes
                yield _NETWORK_ERRORS, errors, attributes


def _is_partition(name: str) -> bool:
    """Return whether a device is a partition.

    Linux lists both disks and partitions, but only disks have a folder in /sys/block.
    """
    blocks = Path("/sys/block")
    return blocks.is_dir() and not (blocks / name.replace("/", "!")).exists()
