"""Reading of a run directory's files, such as `run.json`, as untrusted data that others may have prepared."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Final

from tensormeter.disk.checked_json import is_intact, pack
from tensormeter.disk.private import open_file
from tensormeter.errors import SpoolError
from tensormeter.settings import IDENTIFIER

__all__ = ["RefusedRunError", "check_contents", "describe_folder", "encode_description", "read_description"]

_MOST_BYTES: Final = 16 << 20
"""Maximum size of a run.json in bytes."""


_HOST: Final = re.compile(r"[^/\0]{1,255}")


class RefusedRunError(SpoolError):
    """A run directory was refused, because others may have prepared its contents."""


def encode_description(run: dict[str, Any]) -> str:
    """Return the text of a `run.json`, including a checksum."""
    return pack(run, indent=1)


def describe_folder(path: Path) -> dict[str, Any]:
    """Describe a run with an unreadable `run.json`, using the ID and host in its folder's name.

    Raises:
        ValueError: The folder's name is not of the form `ID@HOST`.
    """
    run_id, at, host = path.name.partition("@")
    if not at or not IDENTIFIER.fullmatch(run_id) or not _HOST.fullmatch(host):
        raise ValueError(f"{path.name} is not a valid name for a run's folder")
    created = int(path.stat().st_mtime_ns)
    return {"run_id": run_id, "name": run_id, "host": host, "created": created, "rings": "", "settings": {}}


def read_description(path: Path) -> tuple[dict[str, Any], int, bool]:
    """Return the contents of `run.json`, its owner, and whether it matches its checksum.

    A file from an earlier version has no checksum, and counts as a match.

    Raises:
        OSError, ValueError, KeyError, TypeError: The file cannot be read or does not describe a run.
    """
    with open(open_file(path / "run.json", os.O_RDONLY), "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size > _MOST_BYTES:
            raise ValueError(f"run.json is too large ({status.st_size} bytes)")
        run = json.loads(file.read(_MOST_BYTES))
    for name, kind in (("run_id", str), ("host", str), ("rings", str), ("settings", dict)):
        if not isinstance(run[name], kind):
            raise TypeError(f"run.json: invalid {name} {run[name]!r}")
    if not IDENTIFIER.fullmatch(run["run_id"]) or "/" in run["host"] or "\0" in run["host"] + run["rings"]:
        raise ValueError(f"run.json: invalid run {run['run_id']!r} or host {run['host']!r}")
    matches = is_intact(run)
    return run | {"created": run["created"] if isinstance(run.get("created"), int) else 0}, status.st_uid, matches


def check_contents(path: Path) -> None:
    """Check that a run directory contains only files and folders, so that nothing is written elsewhere.

    Raises:
        RefusedRunError: The directory contains something else, such as a link.
    """
    own = path.stat().st_uid in (0, os.geteuid())
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = Path(folder, name)
            try:
                status = entry.lstat()
            except FileNotFoundError:  # the run is still active
                continue
            if stat.S_ISLNK(status.st_mode):
                raise RefusedRunError(f"{entry} is a link, which tensormeter never creates; remove it")
            if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                raise RefusedRunError(f"{entry} is neither a file nor a folder; remove it")
            if not own and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                raise RefusedRunError(f"{entry} has several hard links and belongs to another user; copy the folder")
