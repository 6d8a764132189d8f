"""`tensormeter spool`: look at what is not delivered, send again what was set aside, and delete what never will be delivered."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensormeter.cli.state_folder import StateFolder, describe_hang
from tensormeter.cli.terminal import local_time, plain
from tensormeter.conventions.losses import describe_losses
from tensormeter.errors import RingError, SpoolError, UsageError
from tensormeter.settings import Settings

if TYPE_CHECKING:
    from tensormeter.agent.run_directory.directory import RunDirectory
    from tensormeter.agent.spool.spool import Spool

__all__ = ["spool"]

_LAST_LINES = 10

_directory_option = click.option(
    "--dir",
    "directory",
    type=StateFolder(),
    help="Folder that holds the runs.  [default: $TENSORMETER_DIR, or the user's state directory]",
)


@click.group()
def spool() -> None:
    """Look at what runs have left on this machine, send again what receivers have refused, and delete it."""


@spool.command()
@_directory_option
def ls(directory: Path | None) -> None:
    """List the runs that have something left here."""
    runs, whole = _look(directory)
    if not runs:
        if not whole:
            raise SystemExit(1)
        click.echo("nothing is waiting")
        return
    table = Table("run", "project", "created", "agent", box=None, header_style="bold", pad_edge=False)
    for column in ("waiting", "bytes", "rejected", "lost"):
        table.add_column(column, justify="right")
    for run in runs:
        cells = [
            run.path.name,
            str(run.run.get("settings", {}).get("project", "?")),
            local_time(run.run.get("created", 0)),
        ]
        try:
            cells.append("at work" if _agent_lives(run) else "none")
        except OSError:  # the folder of another user
            cells.append("?")
        try:
            with _opened(run) as found:
                counts = (
                    found.pending_items(),
                    found.used_bytes(),
                    found.quarantined_items(),
                    sum(found.losses().values()),
                )
            cells += [f"{count:,}" for count in counts]
        except SpoolError as error:
            cells += [plain(error)]
        table.add_row(*(Text(plain(cell)) for cell in cells))
    Console().print(table)
    for run in runs:
        if run.damage:
            click.echo(
                f"{plain(run.path.name)}: {plain(run.damage)}; `tensormeter sync` delivers it with its own settings"
            )
    if not whole:
        raise SystemExit(1)


@spool.command()
@click.argument("run")
@_directory_option
def show(run: str, directory: Path | None) -> None:
    """Show what a run has left: RUN is its id, or the name of its folder."""
    found = _find(run, directory)
    console = Console(highlight=False)
    console.print(Text(plain(found.path)), soft_wrap=True)
    with _opened(found) as opened:
        contents = Table("destination", "signal", "what", box=None, header_style="bold", pad_edge=False)
        for column in ("requests", "items", "bytes"):
            contents.add_column(column, justify="right")
        for destination, signal, what, *counts in opened.contents():
            contents.add_row(Text(plain(destination)), Text(plain(signal)), what, *(f"{count:,}" for count in counts))
        console.print(contents if contents.row_count else "nothing is waiting")
        if kept := opened.kept():
            console.print(Text(f"accepted, but not known to be on the receiver's disk: {kept:,} requests"))
        for sentence in describe_losses(opened.losses()):
            console.print(Text(f"lost: {plain(sentence)}"), soft_wrap=True)
        for destination, reason, items in opened.rejections():
            console.print(Text(f"rejected by {plain(destination)}: {items:,} items, {plain(reason)}"), soft_wrap=True)
    if found.agent_log.is_file():
        lines = found.agent_log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        for line in lines:
            console.print(Text(f"agent.log: {plain(line)}"), soft_wrap=True)


@spool.command()
@click.argument("run")
@click.option("--rejected", is_flag=True, help="Only what a receiver has rejected.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_directory_option
def purge(run: str, rejected: bool, yes: bool, directory: Path | None) -> None:
    """Delete what a run has left here, delivered or not. It cannot be brought back."""
    found = _find(run, directory)
    try:
        with _opened(found) as opened:
            items = opened.quarantined_items() if rejected else opened.pending_items() + opened.quarantined_items()
            what = f"{items:,} items of {found.path.name}"
            if not yes:
                click.confirm(f"delete {plain(what)}?", abort=True)
            if rejected:
                opened.forget_rejections()
    except SpoolError as error:
        if rejected:
            raise
        what = f"{found.path.name}, whose spool cannot be read"
        if not yes:
            click.confirm(f"{plain(error)}\ndelete {plain(what)}?", abort=True)
    if not rejected:
        try:
            lock = found.try_agent_lock()
        except OSError as error:
            raise UsageError(f"{plain(found.path.name)} cannot be deleted: {error}") from None
        if lock is None:
            raise UsageError(f"{found.path.name} has an agent at work; end the run first, or stop its agent")
        try:
            with found.siblings_locked():
                if any(_is_written(path) for path in found.ring_files()):
                    raise UsageError(f"{found.path.name} is being recorded; end the run first")
                found.remove()
        except OSError as error:
            raise UsageError(f"{plain(found.path.name)} cannot be deleted: {error}") from None
        finally:
            os.close(lock)
    click.echo(f"deleted {plain(what)}")


@spool.command()
@click.argument("run", required=False)
@_directory_option
def retry(run: str | None, directory: Path | None) -> None:
    """Put what receivers have refused, and the spool has set aside, back into the queue.

    RUN is the run's id, or the name of its folder; without it, all runs. An agent that is at work on the run sends it at once, otherwise
    the next `tensormeter sync` does. Requests keep their ids, so a server that has one already stores nothing twice.
    """
    from tensormeter.agent.sync import wake_agent

    runs = _runs(directory) if run is None else [_find(run, directory)]
    failed = False
    items = 0
    for found in runs:
        name = plain(found.path.name)
        try:
            # Not while an agent that has nothing left decides to remove the folder.
            with found.siblings_locked(), _opened(found) as opened:
                retried = opened.retry()
        except (SpoolError, OSError) as error:
            failed = True
            click.echo(f"{name}: {plain(error)}", err=True)
            continue
        items += retried.items
        if retried.requests:
            works = _agent_lives(found)
            if works:
                wake_agent(found)
            how = "its agent sends them now" if works else "`tensormeter sync` sends them"
            click.echo(f"{name}: {retried.items:,} items ({retried.requests:,} requests) wait again; {how}")
        if retried.damaged:
            failed = True
            click.echo(f"{name}: {retried.damaged:,} items are damaged; they are lost, and counted", err=True)
        if retried.given_up:
            failed = True
            click.echo(
                f"{name}: {retried.given_up:,} items cannot be sent again: the spool was full, and their contents were deleted",
                err=True,
            )
    if not items and not failed:
        click.echo("nothing is set aside")
    if failed:
        raise SystemExit(1)


def _is_written(ring: Path) -> bool:
    """Whether the process that writes a ring lives; a ring that cannot be read has none that could be asked for."""
    from tensormeter.ring.file import RingFile

    try:
        return RingFile.open(ring).writer_alive()
    except RingError:
        return False


def _runs(directory: Path | None) -> "list[RunDirectory]":
    return _look(directory)[0]


def _look(directory: Path | None) -> "tuple[list[RunDirectory], bool]":
    """The runs, and whether every place where there may be some could be looked at."""
    from tensormeter.agent.run_directory.directory import find_runs
    from tensormeter.agent.run_directory.shared_memory import memory_directories
    from tensormeter.disk.probe import PATIENCE, answers

    settings = Settings()
    skipped: list[tuple[Path, str]] = []
    places = [] if directory is None else [directory]
    if directory is None:
        memory, skipped = memory_directories(settings)
        places = [settings.directory, *memory]
    runs: list[RunDirectory] = []
    whole = True
    for place in places:
        if answers(place, PATIENCE):
            found, left = find_runs(place, given=directory is not None)
            runs += found
            skipped += left
        else:
            whole = False
            skipped.append((place, describe_hang()))
    for path, reason in skipped:
        click.echo(f"skipped {plain(path)}: {plain(reason)}", err=True)
    return runs, whole


def _find(selector: str, directory: Path | None) -> "RunDirectory":
    found = [run for run in _runs(directory) if selector in (run.path.name, run.run.get("run_id"))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"there is no run {plain(selector)!r} here; see `tensormeter spool ls`")
    names = ", ".join(plain(run.path.name) for run in found)
    raise UsageError(f"several runs match {plain(selector)!r} ({names}); give the name of the folder")


@contextmanager
def _opened(run: "RunDirectory") -> "Iterator[Spool]":
    from tensormeter.agent.spool.recovery import open_left
    from tensormeter.agent.spool.spool import Spool

    try:
        lock = run.try_agent_lock()
    except OSError:  # the folder of another user
        lock = None
    try:
        # Without an agent, nobody has looked yet whether SQLite's log is whole, and opening it makes SQLite forget that.
        opened = Spool(run.spool) if lock is None else open_left(run.spool)
    finally:
        if lock is not None:
            os.close(lock)
    with closing(opened) as found:
        yield found


def _agent_lives(run: "RunDirectory") -> bool:
    lock = run.try_agent_lock()
    if lock is not None:
        os.close(lock)
    return lock is None
