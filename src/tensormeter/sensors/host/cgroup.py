"""Control groups of the current process, versions 1 and 2 (kernel documentation: admin-guide/cgroup-v1, -v2)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Controller", "controllers", "flat_keyed", "number"]


@dataclass(frozen=True)
class Controller:
    """Folders of one controller for this process, from the innermost group to the mount point.

    Attributes:
        name: Name of the controller: `memory`, `cpu` or `cpuacct`.
        unified: Whether the controller belongs to cgroup version 2.
        folders: Folders of the control groups. A limit in any of these folders applies to this process.
    """

    name: str
    unified: bool
    folders: tuple[Path, ...]

    def tightest(self, limit: Callable[[Path], float | None]) -> tuple[float, Path] | None:
        """Return the lowest limit that `limit` reads from any folder, and that folder; None if there is no limit."""
        limits = [(value, folder) for folder in self.folders if (value := limit(folder)) is not None]
        return min(limits, key=lambda item: item[0], default=None)


def controllers(root: Path = Path("/")) -> Mapping[str, Controller]:
    """Return the controllers of this process by name. The result is empty if the system has no control groups.

    Args:
        root: Folder that contains `proc` and `sys`.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return {}
    result: dict[str, Controller] = {}
    for line in groups:
        _, names, path = line.split(":", 2)
        for name in names.split(",") if names else ["memory", "cpu"]:
            if name in ("memory", "cpu", "cpuacct"):
                folders = tuple(_folders(root, mounts, name if names else None, path))
                # On a machine with both versions, each controller belongs to one version. Version 1 is listed first.
                if folders and name not in result:
                    result[name] = Controller(name, not names, folders)
    return result


def _folders(root: Path, mounts: list[list[str]], controller: str | None, path: str) -> Iterator[Path]:
    """Yield the folders that this process can see, from the group itself up to the mount point."""
    for fields in mounts:
        dash = fields.index("-")
        kind, options = fields[dash + 1], fields[dash + 3].split(",")
        if (kind == "cgroup2") if controller is None else (kind == "cgroup" and controller in options):
            mount_root, mount_point = fields[3], root / fields[4].lstrip("/")
            inside = path.removeprefix(mount_root) if path.startswith(mount_root) else ""
            folder = mount_point / inside.strip("/")
            while True:
                if folder.is_dir():
                    yield folder
                if folder == mount_point:
                    return
                folder = folder.parent


def number(path: Path) -> int | None:
    """Read the number in a file. Return None if the file does not exist or contains `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def flat_keyed(path: Path) -> Mapping[str, int]:
    """Read a file of `name number` lines. The result is empty if the file does not exist."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, value in (line.split() for line in lines)}
