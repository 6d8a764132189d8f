"""Space on the run's file systems. The sensor is separate, because an unresponsive network file system makes it hang."""

import os
import tempfile
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import psutil

from tensormeter.sensors.instrument import Instrument, Observed, Reading
from tensormeter.sensors.targets import Watch

__all__ = ["FilesystemSensor"]

_WHERE: Final = ("system.filesystem.mountpoint", "system.filesystem.type", "system.device")
_USAGE: Final = Instrument(
    "system.filesystem.usage",
    "updowncounter",
    "By",
    "Disk space in each state (`reserved` is available only to root).",
    (*_WHERE, "system.filesystem.state"),
)
_LIMIT: Final = Instrument("system.filesystem.limit", "updowncounter", "By", "Size of the file system.", _WHERE)
_UTILIZATION: Final = Instrument(
    "system.filesystem.utilization",
    "gauge",
    "1",
    "Fraction of disk space in use.",
    (*_WHERE, "system.filesystem.state"),
)


class FilesystemSensor:
    """Sensor of the file systems of `/`, temporary files, shared memory, the spool and the trainers' working folders."""

    name = "filesystem"
    instruments = (_USAGE, _LIMIT, _UTILIZATION)

    def __init__(self, watch: "Watch") -> None:
        self._watch = watch

    def readings(self) -> Iterable[Reading]:
        folders = {"/", tempfile.gettempdir(), "/dev/shm", *self._watch.folders}  # noqa: S108 - observed, not used
        for process in self._watch.processes:
            try:
                folders.add(psutil.Process(process.pid).cwd())
            except (psutil.Error, OSError):
                continue
        mounts = {part.mountpoint: part for part in psutil.disk_partitions(all=True)}
        points = {_mount_point(folder, mounts) for folder in folders}
        for point in sorted(points & mounts.keys()):
            yield point, partial(self._space, mounts[point])

    def close(self) -> None:
        pass

    def _space(self, part: Any) -> Iterable[Observed]:
        usage = psutil.disk_usage(part.mountpoint)
        attributes = dict(zip(_WHERE, (part.mountpoint, part.fstype, part.device), strict=True))
        reserved = usage.total - usage.used - usage.free
        for state, size in (("used", usage.used), ("free", usage.free), ("reserved", reserved)):
            yield _USAGE, size, attributes | {"system.filesystem.state": state}
        yield _LIMIT, usage.total, attributes
        if usage.total:
            yield _UTILIZATION, usage.used / usage.total, attributes | {"system.filesystem.state": "used"}


def _mount_point(folder: str, mounts: Iterable[str]) -> str:
    """Return the mount point of a folder. It is derived from the path, because a file-system query may hang."""
    while folder not in mounts and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder
