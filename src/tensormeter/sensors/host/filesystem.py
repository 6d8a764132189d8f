"""Space on the file systems that the run writes to. A sensor of its own: a dead network file system hangs whoever asks."""

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
    "Space in each state (`reserved`: only root may use it).",
    (*_WHERE, "system.filesystem.state"),
)
_LIMIT: Final = Instrument("system.filesystem.limit", "updowncounter", "By", "Size of the file system.", _WHERE)
_UTILIZATION: Final = Instrument(
    "system.filesystem.utilization",
    "gauge",
    "1",
    "Share of the space that is used.",
    (*_WHERE, "system.filesystem.state"),
)


class FilesystemSensor:
    """The file systems of `/`, of temporary files, of shared memory, of the spool, and of the trainers' working folders."""

    name = "filesystem"
    instruments = (_USAGE, _LIMIT, _UTILIZATION)

    def __init__(self, watch: "Watch") -> None:
        self._watch = watch

    def readings(self) -> Iterable[Reading]:
        folders = {"/", tempfile.gettempdir(), "/dev/shm", *self._watch.folders}  # noqa: S108 - looked at, not used
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
        where = dict(zip(_WHERE, (part.mountpoint, part.fstype, part.device), strict=True))
        reserved = usage.total - usage.used - usage.free
        for state, size in (("used", usage.used), ("free", usage.free), ("reserved", reserved)):
            yield _USAGE, size, where | {"system.filesystem.state": state}
        yield _LIMIT, usage.total, where
        if usage.total:
            yield _UTILIZATION, usage.used / usage.total, where | {"system.filesystem.state": "used"}


def _mount_point(folder: str, mounts: Iterable[str]) -> str:
    """The mount point above a folder, found by name, because asking the file system may hang."""
    while folder not in mounts and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder
