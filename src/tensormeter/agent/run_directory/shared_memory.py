"""Folders in shared memory: their names can be predicted, so another user may have made them first.

They contain rings, and runs while `settings.directory` cannot be used. A folder is used, for reading and writing, only if it belongs to
this user and no other user can write to it. When the usual folder belongs to another user, runs are stored in a folder whose name
cannot be predicted, and which readers search for.
"""

import os
import tempfile
from pathlib import Path

from tensormeter.disk.private import fault, make_directory
from tensormeter.settings import Settings

__all__ = ["make_memory_directory", "make_private_directory", "memory_directories"]


def memory_directories(settings: Settings) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the folders that hold runs of this user, as `settings.directory` does.

    Returns:
        The existing folders; and the path of each folder that is refused, with the reason.
    """
    own: list[Path] = []
    refused: list[tuple[Path, str]] = []
    for top in _tops(_parent(settings)):
        state = top / "state"
        if reason := fault(top) or fault(state):
            refused.append((top, reason))
        elif state.exists():
            own.append(state)
    return own, refused


def make_memory_directory(settings: Settings) -> Path:
    """Find or make a folder for runs that only this user can write to: in shared memory, or among the temporary files.

    If another user has made the usual one, its name has an ending that cannot be predicted.

    Raises:
        OSError: The folder cannot be created.
    """
    parent = _parent(settings)
    for top in _tops(parent):
        try:
            return _make_state(top)
        except PermissionError:
            continue
    return _make_state(Path(tempfile.mkdtemp(prefix=f"{_name()}-", dir=parent)))


def make_private_directory(path: Path) -> None:
    """Make a folder, or check that this user has made it and no other user can write to it.

    Raises:
        PermissionError: Another user has made it or can write to it.
        OSError: The folder cannot be created.
    """
    make_directory(path)
    if reason := fault(path):
        raise PermissionError(f"{path} is not a folder that only this user can write to ({reason})")


def _make_state(top: Path) -> Path:
    make_private_directory(top)
    state = top / "state"
    make_private_directory(state)
    return state


def _parent(settings: Settings) -> Path:
    return settings.buffer_directory or Path(tempfile.gettempdir())


def _tops(parent: Path) -> list[Path]:
    """Return the usual folder, which need not exist, and those that were made because it belonged to another user."""
    return [parent / _name(), *sorted(parent.glob(f"{_name()}-*"))]


def _name() -> str:
    return f"tensormeter-{os.getuid()}"
