"""`tensormeter sync`: deliver what earlier runs have left on this machine."""

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
@click.option("--endpoint", help="Where to deliver. Default: where each run wanted to go.")
@click.option("--watch", is_flag=True, help="Go on looking for runs to deliver, until Ctrl-C.")
@click.option(
    "--interval", default=10.0, show_default=True, type=click.FloatRange(0.1), help="Seconds between two looks."
)
def sync(directory: Path | None, endpoint: str | None, watch: bool, interval: float) -> None:
    """Deliver what earlier runs have left in their spools and rings.

    DIRECTORY holds the runs, or is the folder of one; it may come from another machine. The default is TENSORMETER_DIR, or
    the user's state directory, and shared memory. The exit status is 1 if something is not delivered, or is accepted and not
    known to be on the receiver's disk, or is lost and no earlier `sync` has reported it.

    Runs of DIRECTORY are delivered with the settings of this command (its options and TENSORMETER_* variables): endpoint,
    token, exporters and all others. So are runs in a folder that others could replace. Folders of other users in shared
    memory are skipped.
    """
    settings = Settings() if endpoint is None else Settings(endpoint=endpoint)
    console = Console(highlight=False)
    said: dict[Path, str] = {}
    for look in itertools.count():
        found, delivered = _sync_once(console, settings, directory, endpoint, said)
        if not watch:
            if not found:
                console.print("nothing to deliver")
            if delivered < found:
                raise SystemExit(1)
            return
        if look == 0:
            console.print("watching; Ctrl-C ends it")
        threading.Event().wait(interval)


def _sync_once(
    console: Console,
    settings: Settings,
    directory: Path | None,
    endpoint: str | None,
    said: dict[Path, str],
) -> tuple[int, int]:
    """Returns how many runs there were, and how many of them are delivered. What was `said` before is not said again."""
    from tensormeter.agent.run_directory.shared_memory import memory_directories
    from tensormeter.agent.sync import SkippedRun, sync_runs
    from tensormeter.disk.probe import PATIENCE, answers

    found = delivered = 0
    places = [] if directory is None else [directory]
    if directory is None:
        memory, refused = memory_directories(settings)
        places = [settings.directory, *memory]
        for path, reason in refused:
            _say(console, said, path, f"{escape(plain(path))}: skipped, {escape(plain(reason))}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bars = _Bars(progress)
        for place in places:
            if not answers(place, PATIENCE):
                found += 1
                line = f"{escape(plain(place))}: skipped, {describe_hang()}"
                _say(console, said, place, line)
                continue
            results = sync_runs(
                place,
                endpoint=endpoint,
                token=settings.token,
                caller=settings,
                marks=True,
                given=directory is not None,
                on_status=bars.update,
            )
            for result in results:
                if isinstance(result, SkippedRun):
                    found += 1
                    line = f"{escape(plain(result.path))}: skipped, {escape(plain(result.reason))}"
                    _say(console, said, result.path, line)
                else:
                    found += 1
                    delivered += result.is_complete
                    bars.remove(result.run)
                    _say(console, said, result.run.path, f"{_name(result.run)}: {_outcome(result)}")
    return found, delivered


def _say(console: Console, said: dict[Path, str], path: Path, line: str) -> None:
    if said.get(path) != line:
        console.print(line, soft_wrap=True)
    said[path] = line


def _outcome(result: "SyncResult") -> str:
    notes = [*result.cut, *([result.note] if result.note else [])]
    return "\n  ".join(escape(plain(text)) for text in [result.outcome, *notes])


def _name(run: "RunDirectory") -> str:
    return escape(plain(f"{run.run.get('settings', {}).get('project', '?')}/{run.path.name}"))


class _Bars:
    """A progress bar for each run that is being delivered; its length is the most that was ever left to do."""

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
