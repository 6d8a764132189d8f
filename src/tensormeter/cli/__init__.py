"""The command line. Commands are imported when they run, so that `tensormeter --help` loads none of them."""

import importlib
import sys
from collections.abc import Sequence
from typing import Final

import click

from tensormeter.errors import TensormeterError

__all__ = ["main"]

_COMMANDS: Final = {
    "import": ("tensormeter.cli.import_", "Send OTLP files to a server."),
    "backup": ("tensormeter.cli.maintain", "Copy a server's store while it runs."),
    "check": ("tensormeter.cli.check", "Verify everything in a server's store."),
    "compact": ("tensormeter.cli.maintain", "Make a server's store as small as it can be."),
    "doctor": ("tensormeter.cli.doctor", "Check what a run on this machine needs."),
    "export": ("tensormeter.cli.export", "Write every point of a run to a file."),
    "runs": ("tensormeter.cli.runs", "List runs."),
    "serve": ("tensormeter.cli.serve", "Start an experiment server."),
    "show": ("tensormeter.cli.show", "Show a run: its configuration, last values and charts."),
    "spool": ("tensormeter.cli.spool", "Look at what runs have left on this machine, and delete it."),
    "sync": ("tensormeter.cli.sync", "Deliver what runs have left on this machine."),
    "token": ("tensormeter.cli.token", "Make, list and revoke the tokens of a server."),
}
"""Module and one-line help of each command; the module has the command under its name (`import` cannot be one)."""


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
    """Training telemetry on OpenTelemetry."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed (one line on stderr says why), 2 wrong usage."""
    try:
        tensormeter.main(arguments, prog_name="tensormeter")
    except TensormeterError as error:
        print(f"tensormeter: {error}", file=sys.stderr)
        sys.exit(1)
