"""The command `tensormeter export`."""

import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, get_args

import click
from click.core import ParameterSource

from tensormeter.cli.archive import write_archive
from tensormeter.cli.options import endpoint_option
from tensormeter.client import Connection, StoredRun, find_run
from tensormeter.client.export import Format, export_points, export_run
from tensormeter.client.export_media import export_media
from tensormeter.errors import TensormeterError, UsageError

__all__ = ["export"]

_STDOUT: Final = Path("-")


@click.command()
@click.argument("run", required=False)
@click.option("--format", type=click.Choice(get_args(Format)), default="csv", show_default=True, help="File format.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="Output file, or folder of an archive; - is standard output.  [default: RUN_ID.FORMAT or PROJECT.archive in the"
    " current folder]",
)
@click.option(
    "--media",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Also write images, videos, audio, texts, HTML, figures and tables to files in this folder.",
)
@click.option("--force", is_flag=True, help="Replace an existing file or archive.")
@click.option(
    "--metric",
    "patterns",
    multiple=True,
    metavar="GLOB",
    help="Export only metrics whose names match this pattern; may be repeated.  [default: all]",
)
@click.option(
    "--project",
    help="Project of the run; required if the ID or name exists in several projects. Without RUN, project to export as an"
    " archive.",
)
@click.option("--all-projects", is_flag=True, help="Without RUN: export all projects as one archive.")
@endpoint_option
@click.pass_context
def export(
    context: click.Context,
    run: str | None,
    *,
    format: Format,
    output: Path | None,
    media: Path | None,
    force: bool,
    patterns: tuple[str, ...],
    project: str | None,
    all_projects: bool,
    endpoint: str | None,
) -> None:
    """Write the points of a run to a file, or whole projects to an archive.

    With RUN, all points and distributions of the run are written to a file, as one table in long format. RUN is an ID, the beginning of an ID, or a unique name. The columns are project, run, process, rank, attempt, metric,
    attributes (JSON), step, time (nanoseconds since the Unix epoch; a timestamp in Parquet) and value. If metrics with the
    same name differ in scope, unit, kind or temporality, these four columns follow the metric. If the run has
    distributions, the table also has the columns kind, temporality, count, sum, min, max, bounds, counts and quantiles.

    The file appears once it is complete. In CSV, a ' precedes each name that a spreadsheet would evaluate as a formula.

    Without RUN, everything that the server has of the project is written to a folder of Parquet files and media, which
    `tensormeter import` can load into another server. If the command is interrupted, run it again to continue.
    """
    connection = Connection(endpoint)
    if run is None:
        _check_archive_options(context, project, all_projects=all_projects)
        write_archive(connection, None if all_projects else project, output, force=force)
        return
    if all_projects:
        raise UsageError("--all-projects: only for exports without RUN")
    stored_run = StoredRun(connection, find_run(connection, run, project, fields=""))
    target = Path(f"{stored_run.id}.{format}") if output is None else output
    if target.is_dir():
        raise UsageError(f"{target} is a folder; choose another --output")
    if target != _STDOUT and target.exists() and not force:
        raise UsageError(f"{target} exists; choose another --output, or replace it with --force")

    def choose(name: str) -> bool:
        return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)

    try:
        if target == _STDOUT:
            rows = export_points(stored_run, sys.stdout.buffer, format, choose=choose)
            sys.stdout.buffer.flush()
        else:
            rows = export_run(stored_run, target, format, choose=choose)
        files = None if media is None else export_media(stored_run, media)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except OSError as error:
        path = error.filename or target
        raise TensormeterError(f"{path}: cannot write the file ({error.strerror or error})") from None
    click.echo(f"wrote {rows:,} rows" + ("" if target == _STDOUT else f" to {target}"), err=target == _STDOUT)
    if files is not None:
        written, missing = files
        click.echo(f"wrote {written:,} media files to {media}", err=target == _STDOUT)
        if missing:
            click.echo(f"the server could not return {missing:,} media", err=True)


def _check_archive_options(context: click.Context, project: str | None, *, all_projects: bool) -> None:
    """Check the options of an export without a run."""
    if (project is None) != all_projects:
        raise UsageError("name a RUN, or export whole projects with either --project or --all-projects")
    for name, option in (("format", "--format"), ("media", "--media"), ("patterns", "--metric")):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{option}: only for exports of a single RUN; an archive contains everything as Parquet")
