"""The user's folders for state and data, in any environment.

In some containers, HOME is missing, empty or relative, or the user ID has no name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import platformdirs

__all__ = ["NO_FOLDER", "user_data_folder", "user_state_folder"]

NO_FOLDER: Final = Path("/dev/null/tensormeter")
"""Placeholder for a user without a home. Not even root can create it, so callers store its data elsewhere."""


def user_state_folder() -> Path:
    """Return the user's folder for state, or `NO_FOLDER` if it is unknown. This never raises and creates nothing."""
    return _absolute(lambda: platformdirs.user_state_path("tensormeter"))


def user_data_folder() -> Path:
    """Return the user's folder for data, or `NO_FOLDER` if it is unknown. This never raises and creates nothing."""
    return _absolute(lambda: platformdirs.user_data_path("tensormeter"))


def _absolute(find: Callable[[], Path]) -> Path:
    """Return the folder if its path is absolute, or else `NO_FOLDER`: XDG requires relative paths to be ignored."""
    try:
        path = find().expanduser()
    except (RuntimeError, OSError, ValueError):
        return NO_FOLDER
    return path if path.is_absolute() else NO_FOLDER
