"""The command `tensormeter sync`, which delivers data of earlier runs on this machine."""

import itertools
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tensormeter.cli.state_folder import StateFolder, describe_hang
from tensormeter.cli.terminal import plain
from tensormeter.settings import Settings

if TYPE_CHECKING:
    from tensormeter.agent.run_directory.directory import RunDirectory
    from tensormeter.agent.sync import SyncResult

__all__ = ["sync"]


@click.command()
@click.argument("directory", required=False, type=StateFolder())
@click.option("--endpoint", metavar="URL", help="Base URL of the destination.  [default: the endpoint of each run]")
@click.option("--watch", is_flag=True, help="Keep looking for runs to deliver, until Ctrl-C.")
@click.option(
    "--interval",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="With --watch: seconds between searches.",
)
def sync(directory: Path | None, endpoint: str | None, watch: bool, interval: float) -> None:
    """Deliver the data that earlier runs have left in their spools and ring buffers.

    DIRECTORY contains runs, or is the folder of a single run; it may come from another machine. By default, the command searches
    TENSORMETER_DIR (else the user's state directory) and shared memory.

    Runs in DIRECTORY are delivered with the settings of this command: its options and the TENSORMETER_* variables. The
    same applies to runs in a folder that other users could replace. Folders of other users in shared memory are skipped.

    The exit status is 1 if data is undelivered, if accepted data may not be on the receiver's disk yet, or if data is lost and no
    earlier `sync` has reported the loss.
    """
    settings = Settings() if endpoint is None else Settings(endpoint=endpoint)
    console = Console(highlight=False)
    printed: dict[Path, str] = {}
    for search in itertools.count():
        runs, delivered = _sync_once(console, settings, directory, endpoint, printed)
        if not watch:
            if not runs:
                console.print("nothing to deliver")
            if delivered < runs:
                raise SystemExit(1)
            return
        if search == 0:
            console.print("watching for runs; press Ctrl-C to stop")
        threading.Event().wait(interval)


def _sync_once(
    console: Console,
    settings: Settings,
    directory: Path | None,
    endpoint: str | None,
    printed: dict[Path, str],
) -> tuple[int, int]:
    """Deliver all runs once, and print only lines that differ from `printed`.

    Return the number of runs and the number of delivered runs.
    """
    from tensormeter.agent.run_directory.shared_memory import memory_directories
    from tensormeter.agent.sync import SkippedRun, sync_runs
    from tensormeter.disk.probe import PATIENCE, answers

    runs = delivered = 0
    folders = [] if directory is None else [directory]
    if directory is None:
        memory, refused = memory_directories(settings)
        folders = [settings.directory, *memory]
        for path, reason in refused:
            _print_once(console, printed, path, f"{escape(plain(path))}: skipped, {escape(plain(reason))}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bars = _Bars(progress)
        for folder in folders:
            if not answers(folder, PATIENCE):
                runs += 1
                line = f"{escape(plain(folder))}: skipped, {describe_hang()}"
                _print_once(console, printed, folder, line)
                continue
            results = sync_runs(
                folder,
                endpoint=endpoint,
                token=settings.token,
                caller=settings,
                marks=True,
                given=directory is not None,
                on_status=bars.update,
            )
            for result in results:
                runs += 1
                if isinstance(result, SkippedRun):
                    line = f"{escape(plain(result.path))}: skipped, {escape(plain(result.reason))}"
                    _print_once(console, printed, result.path, line)
                else:
                    delivered += result.is_complete
                    bars.remove(result.run)
                    _print_once(console, printed, result.run.path, f"{_name(result.run)}: {_outcome(result)}")
    return runs, delivered


def _print_once(console: Console, printed: dict[Path, str], path: Path, line: str) -> None:
    if printed.get(path) != line:
        console.print(line, soft_wrap=True)
    printed[path] = line


def _outcome(result: "SyncResult") -> str:
    notes = [*result.cut, *([result.note] if result.note else [])]
    return "\n  ".join(escape(plain(text)) for text in [result.outcome, *notes])


def _name(run: "RunDirectory") -> str:
    return escape(plain(f"{run.run.get('settings', {}).get('project', '?')}/{run.path.name}"))


class _Bars:
    """Progress bars, one per run that is being delivered.

    A bar's total is the largest number of undelivered items seen so far.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[Path, tuple[TaskID, int]] = {}

    def update(self, run: "RunDirectory", items: int) -> None:
        bar, most = self._bars.get(run.path) or (self._progress.add_task(_name(run), total=None), 0)
        most = max(most, items)
        self._bars[run.path] = (bar, most)
        self._progress.update(bar, total=most, completed=most - items)

    def remove(self, run: "RunDirectory") -> None:
        if run.path in self._bars:
            self._progress.remove_task(self._bars.pop(run.path)[0])
