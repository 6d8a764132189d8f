"""A folder that a command is given, and whose disk may hang."""

import os
from pathlib import Path
from typing import Any

import click

from tensormeter.cli.terminal import plain

__all__ = ["StateFolder", "describe_hang"]


class StateFolder(click.Path):
    """The type of an argument: an existing folder whose disk answers."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False, exists=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder, as a path.

        Raises:
            click.ClickException: The disk does not answer; the exit status is 1.
            click.BadParameter: There is no such folder.
        """
        from tensormeter.disk.probe import PATIENCE, answers

        path = Path(os.fsdecode(value))
        if not answers(path, PATIENCE):
            raise click.ClickException(f"{plain(path)}: {describe_hang()}")
        return super().convert(value, param, ctx)


def describe_hang() -> str:
    """What is wrong with a folder that does not answer, and what to do."""
    from tensormeter.disk.probe import PATIENCE

    return f"it does not answer within {PATIENCE:.0f} s; see to its disk, and try again"
