"""Folders in shared memory. Their names are predictable, so another user may have created them first.

These folders contain rings. They also contain runs if `settings.directory` cannot be used. A folder is used only if it
belongs to this user and no other user can write to it. If the usual folder belongs to another user, runs are stored in
a folder with an unpredictable name, which readers search for.
"""

import os
import tempfile
from pathlib import Path

from tensormeter.disk.private import fault, make_directory
from tensormeter.settings import Settings

__all__ = ["make_memory_directory", "make_private_directory", "memory_directories"]


def memory_directories(settings: Settings) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the folders in shared memory that hold this user's runs, as `settings.directory` does.

    Returns:
        The existing folders, and the path and reason of each refused folder.
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
    """Find or create a private folder for runs, in shared memory or else among temporary files.

    If another user created the usual folder, the new folder's name ends unpredictably.

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
    """Create a folder, or check that this user created it and no other user can write to it.

    Raises:
        PermissionError: Another user created the folder or can write to it.
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
    """Return the usual folder, which need not exist, and any substitutes created because another user owned it."""
    return [parent / _name(), *sorted(parent.glob(f"{_name()}-*"))]


def _name() -> str:
    return f"tensormeter-{os.getuid()}"
