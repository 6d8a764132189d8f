"""The command `tensormeter spool`, which shows, retries or deletes undelivered data on this machine."""

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
    help="Folder that contains the runs.  [default: $TENSORMETER_DIR, else the user's state directory, and shared memory]",
)


@click.group()
def spool() -> None:
    """Show, retry or delete undelivered data of runs on this machine."""


@spool.command()
@_directory_option
def ls(directory: Path | None) -> None:
    """List the runs that have data on this machine."""
    runs, complete = _search(directory)
    if not runs:
        if not complete:
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
            cells.append("running" if _agent_is_alive(run) else "none")
        except OSError:  # the folder belongs to another user
            cells.append("?")
        try:
            with _opened(run) as spool:
                counts = (
                    spool.pending_items(),
                    spool.used_bytes(),
                    spool.quarantined_items(),
                    sum(spool.losses().values()),
                )
            cells += [f"{count:,}" for count in counts]
        except SpoolError as error:
            cells += [plain(error)]
        table.add_row(*(Text(plain(cell)) for cell in cells))
    Console().print(table)
    for run in runs:
        if run.damage:
            click.echo(
                f"{plain(run.path.name)}: {plain(run.damage)}; `tensormeter sync` uses its own settings to deliver it"
            )
    if not complete:
        raise SystemExit(1)


@spool.command()
@click.argument("run")
@_directory_option
def show(run: str, directory: Path | None) -> None:
    """Show the undelivered data, losses and rejections of a run.

    RUN is the run's ID, or the name of its folder.
    """
    selected = _find(run, directory)
    console = Console(highlight=False)
    console.print(Text(plain(selected.path)), soft_wrap=True)
    with _opened(selected) as spool:
        contents = Table("destination", "signal", "state", box=None, header_style="bold", pad_edge=False)
        for column in ("requests", "items", "bytes"):
            contents.add_column(column, justify="right")
        for destination, signal, state, *counts in spool.contents():
            contents.add_row(Text(plain(destination)), Text(plain(signal)), state, *(f"{count:,}" for count in counts))
        console.print(contents if contents.row_count else "nothing is waiting")
        if kept := spool.kept():
            console.print(Text(f"accepted, but possibly not on the receiver's disk yet: {kept:,} requests"))
        for sentence in describe_losses(spool.losses()):
            console.print(Text(f"lost: {plain(sentence)}"), soft_wrap=True)
        for destination, reason, items in spool.rejections():
            console.print(Text(f"rejected by {plain(destination)}: {items:,} items, {plain(reason)}"), soft_wrap=True)
    if selected.agent_log.is_file():
        lines = selected.agent_log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        for line in lines:
            console.print(Text(f"agent.log: {plain(line)}"), soft_wrap=True)


@spool.command()
@click.argument("run")
@click.option("--rejected", is_flag=True, help="Delete only data that a receiver has rejected.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_directory_option
def purge(run: str, rejected: bool, yes: bool, directory: Path | None) -> None:
    """Delete all data of a run on this machine, delivered or not. This cannot be undone.

    RUN is the run's ID, or the name of its folder.
    """
    selected = _find(run, directory)
    try:
        with _opened(selected) as spool:
            items = spool.quarantined_items() if rejected else spool.pending_items() + spool.quarantined_items()
            what = f"{items:,} items of {selected.path.name}"
            if not yes:
                click.confirm(f"delete {plain(what)}?", abort=True)
            if rejected:
                spool.forget_rejections()
    except SpoolError as error:
        if rejected:
            raise
        what = f"{selected.path.name}, whose spool is unreadable"
        if not yes:
            click.confirm(f"{plain(error)}\ndelete {plain(what)}?", abort=True)
    if not rejected:
        try:
            lock = selected.try_agent_lock()
        except OSError as error:
            raise UsageError(f"{plain(selected.path.name)} cannot be deleted: {error}") from None
        if lock is None:
            raise UsageError(f"{selected.path.name} has a running agent; end the run first, or stop its agent")
        try:
            with selected.siblings_locked():
                if any(_is_written(path) for path in selected.ring_files()):
                    raise UsageError(f"{selected.path.name} is being recorded; end the run first")
                selected.remove()
        except OSError as error:
            raise UsageError(f"{plain(selected.path.name)} cannot be deleted: {error}") from None
        finally:
            os.close(lock)
    click.echo(f"deleted {plain(what)}")


@spool.command()
@click.argument("run", required=False)
@_directory_option
def retry(run: str | None, directory: Path | None) -> None:
    """Put rejected data back into the queue.

    RUN is the run's ID, or the name of its folder; without it, the rejected data of all runs is retried.
    A running agent sends the data at once; otherwise the next `tensormeter sync` does. Requests keep their IDs, so a server
    does not store duplicates.
    """
    from tensormeter.agent.sync import wake_agent

    runs = _runs(directory) if run is None else [_find(run, directory)]
    failed = False
    items = 0
    for candidate in runs:
        name = plain(candidate.path.name)
        try:
            # The lock prevents an agent that has no pending data from removing the folder in the meantime.
            with candidate.siblings_locked(), _opened(candidate) as spool:
                retried = spool.retry()
        except (SpoolError, OSError) as error:
            failed = True
            click.echo(f"{name}: {plain(error)}", err=True)
            continue
        items += retried.items
        if retried.requests:
            has_agent = _agent_is_alive(candidate)
            if has_agent:
                wake_agent(candidate)
            sender = "its agent is sending them now" if has_agent else "deliver them with `tensormeter sync`"
            click.echo(f"{name}: queued {retried.items:,} items ({retried.requests:,} requests); {sender}")
        if retried.damaged:
            failed = True
            click.echo(f"{name}: {retried.damaged:,} items are damaged and count as lost", err=True)
        if retried.given_up:
            failed = True
            click.echo(
                f"{name}: {retried.given_up:,} items cannot be sent again; their contents were deleted when the spool was full",
                err=True,
            )
    if not items and not failed:
        click.echo("no rejected data")
    if failed:
        raise SystemExit(1)


def _is_written(ring: Path) -> bool:
    """Return whether the process that writes a ring buffer is alive. Return False for an unreadable ring buffer."""
    from tensormeter.ring.file import RingFile

    try:
        return RingFile.open(ring).writer_alive()
    except RingError:
        return False


def _runs(directory: Path | None) -> "list[RunDirectory]":
    return _search(directory)[0]


def _search(directory: Path | None) -> "tuple[list[RunDirectory], bool]":
    """Find the runs on this machine. Return the runs, and whether all folders could be searched."""
    from tensormeter.agent.run_directory.directory import find_runs
    from tensormeter.agent.run_directory.shared_memory import memory_directories
    from tensormeter.disk.probe import PATIENCE, answers

    settings = Settings()
    skipped: list[tuple[Path, str]] = []
    folders = [] if directory is None else [directory]
    if directory is None:
        memory, skipped = memory_directories(settings)
        folders = [settings.directory, *memory]
    runs: list[RunDirectory] = []
    complete = True
    for folder in folders:
        if answers(folder, PATIENCE):
            in_folder, refused = find_runs(folder, given=directory is not None)
            runs += in_folder
            skipped += refused
        else:
            complete = False
            skipped.append((folder, describe_hang()))
    for path, reason in skipped:
        click.echo(f"skipped {plain(path)}: {plain(reason)}", err=True)
    return runs, complete


def _find(selector: str, directory: Path | None) -> "RunDirectory":
    matches = [run for run in _runs(directory) if selector in (run.path.name, run.run.get("run_id"))]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise UsageError(f"no run {plain(selector)!r} on this machine; list runs with `tensormeter spool ls`")
    names = ", ".join(plain(run.path.name) for run in matches)
    raise UsageError(f"several runs match {plain(selector)!r}; pass the name of one folder: {names}")


@contextmanager
def _opened(run: "RunDirectory") -> "Iterator[Spool]":
    from tensormeter.agent.spool.recovery import open_left
    from tensormeter.agent.spool.spool import Spool

    try:
        lock = run.try_agent_lock()
    except OSError:  # the folder belongs to another user
        lock = None
    try:
        # Without an agent, SQLite's write-ahead log has not been verified yet. Opening the file normally would discard
        # a damaged log.
        opened = Spool(run.spool) if lock is None else open_left(run.spool)
    finally:
        if lock is not None:
            os.close(lock)
    with closing(opened) as spool:
        yield spool


def _agent_is_alive(run: "RunDirectory") -> bool:
    lock = run.try_agent_lock()
    if lock is not None:
        os.close(lock)
    return lock is None
