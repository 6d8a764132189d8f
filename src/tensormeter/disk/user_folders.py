"""The user's folders for state and data, in any environment.

A process may have no HOME, or an empty or relative one, and a user id without a name, as in some containers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import platformdirs

__all__ = ["NO_FOLDER", "user_data_folder", "user_state_folder"]

NO_FOLDER: Final = Path("/dev/null/tensormeter")
"""Stands for a folder of a user without a home. Not even root can create it, so its content is stored elsewhere."""


def user_state_folder() -> Path:
    """Return the user's folder for state; `NO_FOLDER` if it is unknown. Never raises, and creates nothing."""
    return _absolute(lambda: platformdirs.user_state_path("tensormeter"))


def user_data_folder() -> Path:
    """Return the user's folder for data; `NO_FOLDER` if it is unknown. Never raises, and creates nothing."""
    return _absolute(lambda: platformdirs.user_data_path("tensormeter"))


def _absolute(find: Callable[[], Path]) -> Path:
    """Return a folder if it is absolute: the specification of base directories requires to ignore relative ones."""
    try:
        path = find().expanduser()
    except (RuntimeError, OSError, ValueError):
        return NO_FOLDER
    return path if path.is_absolute() else NO_FOLDER
