"""Names that follow from the folders of event files: the names of runs, and prefixes of tags."""

import os
import threading
from pathlib import PurePosixPath
from typing import Final
from weakref import WeakKeyDictionary

from tensormeter.session.run import Run

__all__ = ["Namespaces", "namespaces_of", "run_group", "run_name"]

_ROOT: Final = "runs"
"""Folder that SummaryWriter uses by default, and that is not part of names."""

_KEPT: Final = frozenset({"train", "validation"})
"""Names of folders that become a prefix even if no other folder is in use."""


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
    """Prefixes of the tags of a run that receives the values of several folders. Thread-safe.

    The rule is W&B's: the tags of a single folder have no prefix, except those of `train` and `validation`. The prefix of each
    further folder is its path below the folder that all have in common. A prefix does not change once it has been used.
    """

    def __init__(self) -> None:
        self._prefixes: dict[str, str] = {}
        self._lock = threading.Lock()

    def prefix(self, folder: str) -> str:
        """Return the prefix of a folder's tags, including its slash, or ""."""
        known = self._prefixes.get(folder)
        if known is not None:
            return known
        with self._lock:
            if folder not in self._prefixes:
                self._prefixes[folder] = self._new_prefix(folder)
            return self._prefixes[folder]

    def _new_prefix(self, folder: str) -> str:
        folders = [*self._prefixes, folder]
        root = os.path.dirname(os.path.commonprefix(folders))  # noqa: RUF071 - the folder of the characters in common
        namespace = folder.removeprefix(root).replace(os.sep, "/").strip("/")
        if not namespace or (len(folders) == 1 and namespace not in _KEPT):
            return ""
        return f"{namespace}/"


_namespaces: "Final[WeakKeyDictionary[Run, Namespaces]]" = WeakKeyDictionary()


def namespaces_of(run: Run) -> Namespaces:
    """Return the prefixes of the tags of a run, the same ones for each call with this run."""
    return _namespaces.setdefault(run, Namespaces())
