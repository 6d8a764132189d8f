"""The command `tensormeter runs`."""

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensormeter.cli.options import endpoint_option
from tensormeter.cli.terminal import local_time, plain
from tensormeter.client import Connection

__all__ = ["runs"]


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
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("project", "run", "name"):
        table.add_column(name, overflow="fold", min_width=len(name))
    table.add_column("state", no_wrap=True)
    table.add_column("points", justify="right", no_wrap=True, min_width=len("points"))
    table.add_column("started", no_wrap=True)
    table.add_column("last update", no_wrap=True)
    for run in runs:
        table.add_row(
            *(Text(plain(run[key])) for key in ("project", "id", "name", "state")),
            f"{run['points']:,}",
            local_time(int(run["started"])),
            local_time(int(run["last_time"])),
        )
    Console().print(table)
    if document["total"] > len(runs):
        click.echo(f"showing {len(runs)} of {document['total']} runs; raise --limit to list more")
