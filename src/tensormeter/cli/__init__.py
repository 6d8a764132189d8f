"""The command line. Each command is imported only when it runs, so `tensormeter --help` is fast."""

import importlib
import sys
from collections.abc import Sequence
from typing import Final

import click

from tensormeter.errors import TensormeterError

__all__ = ["main"]

_COMMANDS: Final = {
    "serve": ("tensormeter.cli.serve", "Start a server."),
    "runs": ("tensormeter.cli.runs", "List runs."),
    "show": ("tensormeter.cli.show", "Show a run: its configuration, last values and charts."),
    "logs": ("tensormeter.cli.logs", "Print the log of a run: console output and log records."),
    "diff": ("tensormeter.cli.diff", "Compare the configuration, packages and code of two runs."),
    "export": ("tensormeter.cli.export", "Write the points of a run to a file, or projects to an archive."),
    "import": ("tensormeter.cli.import_", "Import runs of other trackers, archives, and OTLP files."),
    "doctor": ("tensormeter.cli.doctor", "Check whether this machine can record and deliver runs."),
    "sync": ("tensormeter.cli.sync", "Deliver data from earlier runs on this machine."),
    "spool": ("tensormeter.cli.spool", "Show, retry or delete undelivered data on this machine."),
    "token": ("tensormeter.cli.token", "Create, list and revoke access tokens of a server."),
    "backup": ("tensormeter.cli.maintain", "Copy a server's store, even while it runs."),
    "check": ("tensormeter.cli.check", "Verify all data in a server's store."),
    "compact": ("tensormeter.cli.maintain", "Compact a stopped server's store to its minimum size."),
}
"""Module and one-line help of each command.

Each module defines a function with the command's name (`import_` for `import`).
"""


class _LazyGroup(click.Group):
    def list_commands(self, _: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _help = _COMMANDS[name]
        command = getattr(importlib.import_module(module), "import_" if name == "import" else name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup)
@click.version_option(package_name="tensormeter")
def tensormeter() -> None:
    """Record, deliver and show training metrics with OpenTelemetry."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit status 0 means success, 1 means failure, and 2 means incorrect usage. Errors are printed to stderr.
    """
    try:
        tensormeter.main(arguments, prog_name="tensormeter")
    except TensormeterError as error:
        print(f"tensormeter: {error}", file=sys.stderr)
        sys.exit(1)
