"""Command-line arguments that are folders of runs, whose disk may not answer."""

import os
from pathlib import Path
from typing import Any

import click

from tensormeter.cli.terminal import plain

__all__ = ["StateFolder", "describe_hang"]


class StateFolder(click.Path):
    """Parameter type: an existing folder whose disk answers."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False, exists=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the argument to a path.

        Raises:
            click.ClickException: The disk does not answer; the exit status is 1.
            click.BadParameter: The folder does not exist.
        """
        from tensormeter.disk.probe import PATIENCE, answers

        path = Path(os.fsdecode(value))
        if not answers(path, PATIENCE):
            raise click.ClickException(f"{plain(path)}: {describe_hang()}")
        return super().convert(value, param, ctx)


def describe_hang() -> str:
    """Describe a folder whose disk does not answer, with the remedy."""
    from tensormeter.disk.probe import PATIENCE

    return f"it does not answer within {PATIENCE:.0f} s; check its disk, and try again"
