"""The user's folders for state and data, in any surroundings.

A process may have no HOME, an empty or a relative one, and a user id without a name, as in containers that choose the user's number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import platformdirs

__all__ = ["NO_FOLDER", "user_data_folder", "user_state_folder"]

NO_FOLDER: Final = Path("/dev/null/tensormeter")
"""Stands for a folder of a user without a home. Nobody can make it, root included, so what belongs there goes elsewhere."""


def user_state_folder() -> Path:
    """Where the user's programs keep state; `NO_FOLDER` if that is not known. Never raises, and makes nothing."""
    return _absolute(lambda: platformdirs.user_state_path("tensormeter"))


def user_data_folder() -> Path:
    """Where the user's programs keep data; `NO_FOLDER` if that is not known. Never raises, and makes nothing."""
    return _absolute(lambda: platformdirs.user_data_path("tensormeter"))


def _absolute(find: Callable[[], Path]) -> Path:
    """A folder, if it is absolute: the specification of base directories says to ignore relative ones."""
    try:
        path = find().expanduser()
    except (RuntimeError, OSError, ValueError):
        return NO_FOLDER
    return path if path.is_absolute() else NO_FOLDER
