"""Export of whole projects with a progress bar, for `tensormeter export`."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tensormeter.client import Connection
from tensormeter.client.archive import export_archive
from tensormeter.errors import TensormeterError

__all__ = ["write_archive"]

_UNSAFE: Final = re.compile(r"[^\w.-]")
_SHOWN: Final = 10


class _Bar:
    """Progress bar of an export. It appears only if standard error is a terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("reading", total=None)
        self._runs = self._begun = 0

    def begin(self, runs: int, points: int) -> None:
        self._runs = runs
        self._bar.update(self._task, total=max(points, 1))

    def points(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def run(self, name: str) -> None:
        self._begun += 1
        self._bar.update(self._task, description=escape(name[:60]))


def write_archive(connection: Connection, project: str | None, output: Path | None, *, force: bool) -> None:
    """Export one project, or all projects if `project` is None, and print what was written.

    Raises:
        SystemExit: With status 1, if the server could not return all data.
    """
    projects = _all_projects(connection) if project is None else [project]
    name = "tensormeter" if project is None else (_UNSAFE.sub("_", project).strip(".") or "_")[:100]
    folder = Path(f"{name}.archive") if output is None else output
    try:
        with _progress_bar() as bar:
            summary = export_archive(connection, projects, folder, bar, force=force)
    except OSError as error:
        raise TensormeterError(
            f"{error.filename or folder}: cannot write the file ({error.strerror or error}); run the same command again to"
            " continue"
        ) from None
    if summary.resumed:
        click.echo(f"kept {summary.resumed:,} runs of an interrupted export")
    click.echo(f"wrote {_describe(summary.counts)} to {folder}")
    if summary.running:
        click.echo(f"{_listed(summary.running)}: not finished; the archive has what the server had received so far")
    for text in summary.missing[:_SHOWN]:
        click.echo(f"missing: {text}", err=True)
    if summary.missing:
        more = len(summary.missing) - _SHOWN
        if more > 0:
            click.echo(f"missing: {more:,} more; see manifest.json", err=True)
        raise SystemExit(1)


@contextmanager
def _progress_bar() -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield _Bar(bar)


def _all_projects(connection: Connection) -> Sequence[str]:
    projects = [item["name"] for item in connection.get("projects")["projects"]]
    if not projects:
        raise TensormeterError(f"the server at {connection.endpoint} has no projects")
    return projects


def _describe(counts: Mapping[str, int]) -> str:
    names = {
        "runs": "run", "points": "point", "distributions": "distribution", "events": "event", "logs": "log line",
        "media": "media file",
    }  # fmt: skip
    shown = [(counts.get(key, 0), name) for key, name in names.items() if counts.get(key) or key == "runs"]
    return ", ".join(f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in shown)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
