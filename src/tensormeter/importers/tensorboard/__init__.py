"""TensorBoard: event files of TensorFlow, torch's `SummaryWriter`, Keras and others."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tensormeter.importers.registry import Options
from tensormeter.importers.tensorboard.run import TensorBoardRun

__all__ = ["find"]

_NAME_PART: Final = "tfevents"


def find(address: str, options: Options) -> Iterator[TensorBoardRun]:
    """Yield a run for an event file, or for each folder with event files at or below a path."""
    path = Path(address)
    if path.is_file():
        if _NAME_PART in path.name:
            yield TensorBoardRun(_folder_name(path.parent), (path,))
        return
    for at, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not os.path.islink(os.path.join(at, name)))
        events = tuple(
            file
            for name in sorted(files)
            if _NAME_PART in name and (file := Path(at, name)).is_file() and not file.is_symlink()
        )
        if events:
            relative = os.path.relpath(at, path)
            yield TensorBoardRun(_folder_name(path) if relative == "." else relative, events)


def _folder_name(folder: Path) -> str:
    return folder.resolve().name or "run"
