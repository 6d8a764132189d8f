"""Which attempt at a run this is, counted on this machine.

A run whose id comes again, when none of its processes lives any more, is attempted again.
Schedulers that count restarts themselves know better, see `Settings.attempt`.
"""

import json
from pathlib import Path
from typing import Final

from tensormeter.errors import RingError
from tensormeter.pipeline.directory import RunDirectory
from tensormeter.private import write_file
from tensormeter.ring.file import RingFile

__all__ = ["count_attempt"]

_MOST_RUNS: Final = 1000
"""Runs that are remembered, the latest ones."""


def count_attempt(directory: RunDirectory, project: str, *, resume: bool) -> int:
    """The number of this attempt, from 1. Call it while holding `runs_locked`, before the process has a ring.

    Args:
        directory: Of the run.
        project: The run's.
        resume: There was an attempt before, perhaps on another machine.

    Raises:
        OSError: The count cannot be written.
    """
    path = directory.path.parent / ".attempts.json"
    counts = _read(path)
    run = f"{project}/{directory.run['run_id']}"
    before = counts.pop(run, 0)
    attempt = before if before and _lives(directory) else before + 1
    if resume:
        attempt = max(attempt, 2)
    counts[run] = attempt
    kept = dict(list(counts.items())[-_MOST_RUNS:])
    write_file(path, json.dumps(kept))
    return attempt


def _read(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {run: count for run, count in found.items() if isinstance(count, int)} if isinstance(found, dict) else {}


def _lives(directory: RunDirectory) -> bool:
    for path in directory.ring_files():
        try:
            if RingFile.open(path).writer_alive():
                return True
        except RingError:
            continue
    return False
