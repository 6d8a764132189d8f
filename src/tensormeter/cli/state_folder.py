"""The type of command-line arguments that name folders of runs, whose disk may be unresponsive."""

import os
from pathlib import Path
from typing import Any

import click

from tensormeter.cli.terminal import plain

__all__ = ["StateFolder", "describe_hang"]


class StateFolder(click.Path):
    """Parameter type for an existing folder whose disk responds."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False, exists=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the argument to a path.

        Raises:
            click.ClickException: The disk does not respond; the exit status is 1.
            click.BadParameter: The folder does not exist.
        """
        from tensormeter.disk.probe import PATIENCE, answers

        path = Path(os.fsdecode(value))
        if not answers(path, PATIENCE):
            raise click.ClickException(f"{plain(path)}: {describe_hang()}")
        return super().convert(value, param, ctx)


def describe_hang() -> str:
    """Return the message for a folder whose disk does not respond, with a remedy."""
    from tensormeter.disk.probe import PATIENCE

    return f"it did not respond within {PATIENCE:.0f} s; check its disk, and try again"
