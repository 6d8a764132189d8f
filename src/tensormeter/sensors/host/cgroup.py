"""Where a process stands in the kernel's control groups, version 1 and 2 (kernel documentation: admin-guide/cgroup-v1, -v2)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Controller", "controllers", "flat_keyed", "number"]


@dataclass(frozen=True)
class Controller:
    """One controller's folders for this process, innermost first, up to the mount point.

    Attributes:
        name: `memory`, `cpu` or `cpuacct`.
        unified: Whether it is of version 2.
        folders: A limit in any of them holds.
    """

    name: str
    unified: bool
    folders: tuple[Path, ...]

    def tightest(self, limit: Callable[[Path], float | None]) -> tuple[float, Path] | None:
        """The lowest limit on the way up, and where it is set. None: there is none."""
        found = [(value, folder) for folder in self.folders if (value := limit(folder)) is not None]
        return min(found, key=lambda item: item[0], default=None)


def controllers(root: Path = Path("/")) -> Mapping[str, Controller]:
    """The controllers of this process, by name. Empty where there are no control groups.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return {}
    found: dict[str, Controller] = {}
    for line in groups:
        _, names, path = line.split(":", 2)
        for name in names.split(",") if names else ["memory", "cpu"]:
            if name in ("memory", "cpu", "cpuacct"):
                folders = tuple(_folders(root, mounts, name if names else None, path))
                # A machine with both versions has each controller in one of them; version 1 is listed first.
                if folders and name not in found:
                    found[name] = Controller(name, not names, folders)
    return found


def _folders(root: Path, mounts: list[list[str]], controller: str | None, path: str) -> Iterator[Path]:
    """From the group's own folder up to the mount point, as far as this process can see them."""
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
    """A file's one number. None: there is no such file, or it says `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def flat_keyed(path: Path) -> Mapping[str, int]:
    """A file of lines `name number`. Empty where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, value in (line.split() for line in lines)}
