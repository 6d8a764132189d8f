"""Weights & Biases: `.wandb` files of offline and online runs, with the media in their folders."""

import os
from collections.abc import Iterator
from pathlib import Path

from tensormeter.importers.registry import Options
from tensormeter.importers.wandb.record_log import is_record_log
from tensormeter.importers.wandb.run import WandbRun

__all__ = ["find"]


def find(address: str, options: Options) -> Iterator[WandbRun]:
    """Yield the runs in a `.wandb` file, a run's folder, or a folder with any number of runs below it."""
    path = Path(address)
    if path.is_file():
        files = [path] if path.suffix == ".wandb" and is_record_log(path) else []
    elif path.is_dir():
        files = sorted(_files_below(path))
    else:
        files = []
    for file in files:
        yield WandbRun(file, _attempt(file))


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the `.wandb` files below a folder. Links such as `latest-run` are not followed."""
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "media" and not os.path.islink(os.path.join(at, name))]
        for name in files:
            path = Path(at, name)
            if path.suffix == ".wandb" and path.is_file() and is_record_log(path):
                yield path


def _attempt(file: Path) -> int:
    """Return the number of a run's attempt: the position of its folder among those of the same run, from 1.

    Two folders of one second have the same name, so W&B appends a number to the second one. The name of the file has the ID.
    """
    folder = Path(os.path.abspath(file)).parent
    if not folder.name.startswith(("run-", "offline-run-")) or folder.is_symlink():
        return 1
    siblings = [
        sibling.parent.name.removeprefix("offline-")
        for sibling in folder.parent.glob(f"*run-*/{_escaped(file.name)}")
        if not sibling.parent.is_symlink()
    ]
    return sorted(siblings).index(folder.name.removeprefix("offline-")) + 1


def _escaped(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
