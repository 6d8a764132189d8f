"""Paths of a run: its directory, and the folder for its rings in shared memory."""

import contextlib
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from tensormeter.errors import SettingsError
from tensormeter.settings import Settings

__all__ = ["holds_data", "path_when_made", "ring_directory", "ring_name", "run_path"]


def run_path(directory: Path, run: dict[str, Any]) -> Path:
    """Return the path of a run's directory below `settings.directory`."""
    return directory / "runs" / f"{run['run_id']}@{run['host']}"


def path_when_made(path: Path, run: dict[str, Any]) -> Path:
    """Return the path from which the name of a run's ring directory is derived.

    It is the path that the run used, unless that path now leads to another folder.
    """
    written = run["settings"].get("directory")
    made = run_path(Path(written), run) if isinstance(written, str) else path
    with contextlib.suppress(OSError):
        if not os.path.lexists(made) or made.samefile(path):
            return made
    return path.absolute()


def ring_directory(buffer: Path | None, path: Path) -> Path:
    """Return the folder for a run's rings.

    Args:
        buffer: Value of the setting `buffer_directory`.
        path: Path of the run's directory.
    """
    if buffer is None:
        return path / "rings"
    return buffer / f"tensormeter-{os.getuid()}" / ring_name(path)


def ring_name(path: Path) -> str:
    """Return the name of a run's folder in shared memory."""
    return f"{path.name}-{sha256(os.fsencode(path)).hexdigest()[:12]}"


def holds_data(path: Path) -> bool:
    """Return whether a folder contains a run's data, even if its `run.json` is missing or damaged.

    Raises:
        OSError: The folder cannot be read.
    """
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries]
    if any(name == "reserve" or name.startswith("spool.sqlite") for name in names):
        return True
    rings = {path / "rings"}
    with contextlib.suppress(SettingsError):
        rings.add(ring_directory(Settings().buffer_directory, path.absolute()))
    return "@" in path.name and any(any(folder.glob("*.ring")) for folder in rings)
