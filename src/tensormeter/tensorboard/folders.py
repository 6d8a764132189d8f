"""Names that follow from the folders of event files: the names of runs, and prefixes of tags."""

import os
from pathlib import PurePosixPath
from typing import Final
from weakref import WeakKeyDictionary

from tensormeter.session.run import Run

__all__ = ["Namespaces", "namespaces_of", "run_group", "run_name"]

_ROOT: Final = "runs"
"""Folder that SummaryWriter uses by default, and that is not part of names."""


def run_name(folder: str) -> str:
    """Return the path of a folder relative to the last folder `runs` in it, or else to the working directory."""
    _, separator, rest = folder.rpartition("://")
    path = os.path.normpath(rest if separator else folder)
    if os.path.isabs(path) and not separator:
        here = os.getcwd()
        if os.path.commonpath([here, path]) == here and path != here:
            path = os.path.relpath(path, here)
    parts = [part for part in PurePosixPath(path.replace(os.sep, "/")).parts if part not in ("..", "/")]
    roots = [index for index, part in enumerate(parts[:-1]) if part == _ROOT]
    return "/".join(parts[roots[-1] + 1 :] if roots else parts) or folder


def run_group(folder: str) -> str:
    """Return the name of the folder that contains a run's folder, or "" if this is `runs` or the working directory."""
    return run_name(folder).rpartition("/")[0]


class Namespaces:
    """Prefixes of the tags of a run that receives the values of several folders. Thread-safe without a lock.

    The rule is W&B's: the prefix of a folder is its path below the folder that all have in common, so the tags of a single
    folder have no prefix. A prefix does not change once it has been used, even if there are further folders later.
    """

    def __init__(self) -> None:
        self._prefixes: dict[str, str] = {}
        self._folders: list[str] = []

    def add(self, folder: str) -> None:
        """Add a folder whose prefix is not in use yet."""
        path = _absolute(folder)
        if path not in self._folders:
            self._folders.append(path)

    def prefix(self, folder: str) -> str:
        """Return the prefix of a folder's tags, including its slash, or ""."""
        known = self._prefixes.get(folder)
        if known is not None:
            return known
        self.add(folder)
        below = _absolute(folder).removeprefix(_common_folder(self._folders)).replace(os.sep, "/").strip("/")
        return self._prefixes.setdefault(folder, f"{below}/" if below else "")


def _absolute(folder: str) -> str:
    return folder if "://" in folder else os.path.abspath(folder)


def _common_folder(folders: list[str]) -> str:
    """Return the folder that contains all folders or is one of them, or "" if they have none in common."""
    try:
        return os.path.commonpath(folders)
    except ValueError:  # addresses and paths
        return ""


_namespaces: "Final[WeakKeyDictionary[Run, Namespaces]]" = WeakKeyDictionary()


def namespaces_of(run: Run) -> Namespaces:
    """Return the prefixes of the tags of a run, the same ones for each call with this run."""
    return _namespaces.setdefault(run, Namespaces())
