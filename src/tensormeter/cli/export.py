"""`tensormeter export`."""

import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, get_args

import click

from tensormeter.cli.options import endpoint_option
from tensormeter.client import Connection, StoredRun, find_run
from tensormeter.client.export import Format, export_points, export_run
from tensormeter.errors import TensormeterError, UsageError

__all__ = ["export"]

_STDOUT: Final = Path("-")


@click.command()
@click.argument("run")
@click.option("--format", type=click.Choice(get_args(Format)), default="csv", show_default=True)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file; - is standard output.  [default: the run's id and the format, in this folder]",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--metric", "patterns", multiple=True, metavar="GLOB", help="Only these; may be repeated.")
@click.option("--project", help="Project of the run, where several have one of that name.")
@endpoint_option
def export(
    run: str,
    *,
    format: Format,
    output: Path | None,
    force: bool,
    patterns: tuple[str, ...],
    project: str | None,
    endpoint: str | None,
) -> None:
    """Write every point and distribution of a run to a file: one long table, a row each.

    RUN is an id, the beginning of one, or a name that only one run has. The columns are project, run, process, rank, attempt, metric,
    attributes (JSON), step, time (nanoseconds since the Unix epoch; a timestamp in Parquet) and value; where there are
    distributions, also kind, temporality, count, sum, min, max, bounds, counts and quantiles. The file appears when it is complete.
    In CSV, a name that a spreadsheet would run as a formula has a ' before it.
    """
    connection = Connection(endpoint)
    found = StoredRun(connection, find_run(connection, run, project))
    target = Path(f"{found.id}.{format}") if output is None else output
    if target != _STDOUT and target.exists() and not force:
        raise UsageError(f"{target} is there already; give another --output, or --force to replace it")

    def choose(name: str) -> bool:
        return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)

    try:
        if target == _STDOUT:
            rows = export_points(found, sys.stdout.buffer, format, choose=choose)
            sys.stdout.buffer.flush()
        else:
            rows = export_run(found, target, format, choose=choose)
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except OSError as error:
        raise TensormeterError(f"{target}: cannot be written ({error.strerror or error})") from None
    click.echo(f"{rows:,} rows" + ("" if target == _STDOUT else f" in {target}"), err=target == _STDOUT)
