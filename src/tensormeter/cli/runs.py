"""The command `tensormeter runs`."""

import os
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensormeter.cli.options import endpoint_option
from tensormeter.cli.terminal import local_time, plain
from tensormeter.client import Connection

__all__ = ["runs"]

_LONGEST_WHOLE: Final = 24
_NARROW: Final = 100
_UNLIMITED: Final = 100_000
"""Widths of the output in characters."""


@click.command()
@click.option("--project", help="List only runs of this project.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 1000), help="Maximum number of runs to list."
)
@endpoint_option
def runs(project: str | None, limit: int, endpoint: str | None) -> None:
    """List runs, the newest first."""
    document = Connection(endpoint).get("runs", project=project, limit=limit, fields="")
    runs = document["runs"]
    if not runs:
        where = "" if project is None else f" in project {plain(project)}"
        click.echo(f"no runs{where} yet")
        return
    console = Console()
    if not console.is_terminal and not os.environ.get("COLUMNS"):  # one line per run, for programs such as grep
        console.width = _UNLIMITED
    table = Table(box=None, header_style="bold", pad_edge=False)
    longest = max(len(run["id"]) for run in runs)
    for name in ("project", "run", "name"):
        # IDs are copied into other commands, so they stay in one piece if there is space for them.
        whole = name == "run" and longest <= _LONGEST_WHOLE
        table.add_column(name, overflow="fold", no_wrap=whole, min_width=longest if whole else len(name))
    table.add_column("state", no_wrap=True)
    table.add_column("points", justify="right", no_wrap=True, min_width=len("points"))
    table.add_column("started", no_wrap=True)
    table.add_column("last update", no_wrap=True)
    shorten = _without_seconds if console.width < _NARROW else str
    for run in runs:
        table.add_row(
            *(Text(plain(run[key])) for key in ("project", "id", "name", "state")),
            f"{run['points']:,}",
            shorten(local_time(int(run["started"]))),
            shorten(local_time(int(run["last_time"]))),
        )
    console.print(table)
    if document["total"] > len(runs):
        click.echo(f"showing {len(runs)} of {document['total']} runs; raise --limit to list more")


def _without_seconds(moment: str) -> str:
    return moment[:16] if moment.count(":") == 2 else moment
