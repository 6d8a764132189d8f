"""The command `tensormeter doctor`."""

import logging

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensormeter.cli.terminal import plain
from tensormeter.settings import Settings

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command()
@click.option(
    "--endpoint",
    metavar="URL",
    help="Base URL to check.  [default: $TENSORMETER_ENDPOINT, or the server on this machine]",
)
def doctor(endpoint: str | None) -> None:
    """Check whether this machine can record and deliver runs, and suggest remedies.

    The exit status is 1 if a check fails.
    """
    from tensormeter.cli.doctor_checks import CHECKS, Finding

    settings = Settings() if endpoint is None else Settings(endpoint=endpoint)
    table = Table(box=None, show_header=False, pad_edge=False)
    failed = False
    logging.getLogger("tensormeter").setLevel(logging.CRITICAL)  # the table shows the findings already
    with Console(stderr=True).status("") as status:
        for check in CHECKS:
            name = check.__name__.replace("_", " ")
            status.update(name)
            try:
                finding = check(settings)
            except Exception as error:  # any problem with the machine can be the cause
                finding = Finding(
                    "failed", f"{type(error).__name__}: {error}", (check.__doc__ or "").partition("\n")[0]
                )
            failed = failed or finding.state == "failed"
            table.add_row(name, Text(finding.state, style=_STYLES[finding.state]), Text(plain(finding.summary)))
            if finding.advice:
                table.add_row("", "", Text(f"→ {plain(finding.advice)}"))
    Console().print(table)
    if failed:
        raise SystemExit(1)
