"""The command `tensormeter import`, which sends the runs of other trackers, and files in the OTLP file format, to a server."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tensormeter.cli.options import endpoint_option
from tensormeter.cli.terminal import plain
from tensormeter.client import Connection
from tensormeter.errors import UsageError
from tensormeter.importers.registry import (
    KINDS,
    ImportContext,
    Options,
    RunSource,
    find_sources,
    skipping_damage,
)
from tensormeter.importers.sender import NullSender, Sender, ServerSender
from tensormeter.importers.tally import Tally
from tensormeter.settings import Settings

__all__ = ["import_"]

_INTERRUPTED = 130
_MOST_FAULTS = 50
"""Maximum number of faults to print one by one."""
_MOST_PROJECTS = 10
"""Maximum number of projects whose addresses are printed."""


@click.command("import")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--project", default="", help="Project for all runs.  [default: the one in the source, or imported]")
@click.option("--name", default="", help="Name for the run, if there is only one.  [default: the one in the source]")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["auto", *KINDS]),
    default="auto",
    show_default=True,
    help="Kind of the files.",
)
@click.option("--step", default="", metavar="COLUMN", help="Column of a table with the step.  [default: guessed]")
@click.option("--time", default="", metavar="COLUMN", help="Column of a table with the time.  [default: guessed]")
@click.option("--run-column", default="", metavar="COLUMN", help="Column of a table with the run.")
@click.option("--dry-run", is_flag=True, help="Read everything and show what would be imported, but send nothing.")
@endpoint_option
def import_(
    paths: tuple[str, ...],
    *,
    project: str,
    name: str,
    kind: str,
    step: str,
    time: str,
    run_column: str,
    dry_run: bool,
    endpoint: str | None,
) -> None:
    """Send runs that other trackers have recorded to a server.

    PATH is a file, a folder or a URI. The command detects the kind of each, and prints what it found. Importing again is safe:
    the server skips everything that it already has, so an interrupted import continues if you run the same command again.

    At the end, a table lists what was imported, and what was left out, by kind and count. If something could not be read, the
    exit status is 1.
    """
    console = Console(highlight=False)
    options = Options(project=project, name=name, step_column=step, time_column=time, run_column=run_column)
    tally = Tally()
    sources = _find(paths, kind, options, tally, console)
    if not sources:
        _report_faults(tally, console)
        sys.exit(1)
    if name and len(sources) > 1:
        raise UsageError(f"--name is for one run, but there are {len(sources):,}; leave it out, or choose one PATH")
    settings = Settings() if endpoint is None else Settings(endpoint=endpoint)
    sender: Sender = NullSender() if dry_run else ServerSender(settings, tally)
    try:
        with _progress(console, sources, tally) as (advance, begin):
            api = None if dry_run else Connection(endpoint)
            context = ImportContext(sender, tally, options, advance, lambda text: _print(console, text), api)
            for source in sources:
                begin(source)
                with skipping_damage(tally, source.label):
                    source.send(context)
            sender.flush()
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to continue")
        _report(tally, console, None if dry_run else settings.endpoint)
        sys.exit(_INTERRUPTED)
    finally:
        sender.close()
    _report(tally, console, None if dry_run else settings.endpoint)
    if tally.faults:
        sys.exit(1)


def _find(paths: tuple[str, ...], kind: str, options: Options, tally: Tally, console: Console) -> list[RunSource]:
    sources: list[RunSource] = []
    for path in paths:
        with skipping_damage(tally, path):
            name, of_path = find_sources(path, kind, options)
            noun = "source" if len(of_path) == 1 else "sources"
            _print(console, f"{path}: {name}, {len(of_path):,} {noun}")
            sources += of_path
    return sources


class _Counts(ProgressColumn):
    """Column with the number of runs and the points per second."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def render(self, task: Task) -> Text:
        rate = self._tally.points / task.elapsed if task.elapsed else 0.0
        return Text(f"{self._tally.runs:,} runs, {rate:,.0f} points/s")


@contextmanager
def _progress(
    console: Console, sources: list[RunSource], tally: Tally
) -> Iterator[tuple[Callable[[int], None], Callable[[RunSource], None]]]:
    """Show a progress bar if the output is a terminal. Yield functions that advance it and that begin the next source."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Counts(tally), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(source.size for source in sources) or None)

        def begin(source: RunSource) -> None:
            progress.update(task, description=plain(source.label)[-40:])

        yield lambda size: progress.advance(task, size), begin


def _print(console: Console, text: str) -> None:
    console.print(Text(plain(text)), soft_wrap=True)


def _report_faults(tally: Tally, console: Console) -> None:
    for fault in tally.faults[:_MOST_FAULTS]:
        _print(console, fault)
    if len(tally.faults) > _MOST_FAULTS:
        console.print(f"... and {len(tally.faults) - _MOST_FAULTS:,} more")


def _report(tally: Tally, console: Console, endpoint: str | None) -> None:
    """Print the faults, the counts, and the addresses of the projects.

    Args:
        tally: Counts of the import.
        console: Terminal or file.
        endpoint: Base URL of the server, or None if nothing was sent.
    """
    _report_faults(tally, console)
    table = Table("would be imported" if endpoint is None else "imported", "count", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for noun in ("runs", "points", "media", "logs"):
        table.add_row("log lines" if noun == "logs" else noun, f"{getattr(tally, noun):,}")
    for kind, count in sorted(tally.left_out.items(), key=lambda entry: (-entry[1], entry[0])):
        table.add_row(Text(f"left out: {plain(kind)}"), f"{count:,}")
    console.print(table)
    if endpoint is None:
        return
    for project in list(tally.projects)[:_MOST_PROJECTS]:
        _print(console, f"{endpoint.rstrip('/')}/#/p/{quote(project, safe='')}")
    if len(tally.projects) > _MOST_PROJECTS:
        console.print(f"... and {len(tally.projects) - _MOST_PROJECTS:,} more projects")
