"""Folders in shared memory: their names can be foreseen, so another user may have made them first.

Runs are kept there when `settings.directory` cannot be used, and rings always. A folder counts only if it is this user's and nobody else
can write to it, for reading as for writing. When the usual one is someone else's, runs go to one whose name cannot be foreseen, and
which readers find.
"""

import os
import tempfile
from pathlib import Path

from tensormeter.disk.private import fault, make_directory
from tensormeter.settings import Settings

__all__ = ["make_memory_directory", "make_private_directory", "memory_directories"]


def memory_directories(settings: Settings) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The folders that hold runs of this user, as `settings.directory` does.

    Returns:
        Those that there are, and for each that has the name of one and is not this user's alone its path and the reason.
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
    """Find or make a folder for runs that nobody else can write to: in shared memory, or among the temporary files.

    If another user has made the usual one, its name has an ending that cannot be foreseen.

    Raises:
        OSError: It cannot be made.
    """
    parent = _parent(settings)
    for top in _tops(parent):
        try:
            return _make_state(top)
        except PermissionError:
            continue
    return _make_state(Path(tempfile.mkdtemp(prefix=f"{_name()}-", dir=parent)))


def make_private_directory(path: Path) -> None:
    """Make a folder, or check that nobody else has made it or can write to it.

    Raises:
        PermissionError: Somebody else has, or can.
        OSError: It cannot be made.
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
    """The usual folder, which need not exist, and those that were made because it was someone else's."""
    return [parent / _name(), *sorted(parent.glob(f"{_name()}-*"))]


def _name() -> str:
    return f"tensormeter-{os.getuid()}"
