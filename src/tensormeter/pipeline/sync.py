"""Delivering what earlier runs have left on this machine."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tensormeter.errors import TensormeterError
from tensormeter.pipeline.agent import Agent
from tensormeter.pipeline.directory import RunDirectory, list_runs
from tensormeter.settings import default_endpoint, is_loopback

__all__ = ["SyncResult", "belongs_to", "sync_runs"]


@dataclass(frozen=True)
class SyncResult:
    """What became of one run.

    Attributes:
        run: The run's directory, which is gone if everything was delivered.
        delivered: Whether everything was.
        message: Why not.
    """

    run: RunDirectory
    delivered: bool
    message: str = ""


def sync_runs(
    directory: Path,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    choose: Callable[[RunDirectory], bool] = lambda run: True,
    on_status: Callable[[RunDirectory, int], None] = lambda run, items: None,
) -> Iterator[SyncResult]:
    """Deliver every run below a directory, one after the other; a bad one does not stop the others.

    A run whose agent is alive is left to it, and the agent is told to try at once.
    Blocks while it delivers; stops with a run as soon as its receiver fails three times in a row.

    Args:
        directory: `Settings.directory` of the runs.
        endpoint: Where to deliver; where each run wanted to go if None.
        token: Bearer token; the one of the environment if None.
        choose: Which runs.
        on_status: Called now and then with the number of items of a run that are not delivered yet.
    """
    for run in list_runs(directory):
        try:
            if choose(run):
                yield _sync(run, endpoint, token, on_status)
        except (TensormeterError, OSError) as error:
            yield SyncResult(run, delivered=False, message=str(error))


def belongs_to(run: RunDirectory, url: str) -> bool:
    """Whether a server that has just started at `url` is where a run wants to go.

    So it is if the run's endpoint is that address, or if the run was offline and no endpoint had been chosen for it.
    """
    settings = run.settings()
    wanted, server = urlsplit(settings.endpoint), urlsplit(url)
    if settings.mode == "offline" and settings.endpoint == default_endpoint():
        return True
    same_host = wanted.hostname == server.hostname or (
        is_loopback(wanted.hostname or "") and is_loopback(server.hostname or "")
    )
    return same_host and wanted.port == server.port


def _sync(
    run: RunDirectory,
    endpoint: str | None,
    token: str | None,
    on_status: Callable[[RunDirectory, int], None],
) -> SyncResult:
    settings = run.settings().replace(mode="online")
    changes = {"endpoint": endpoint, "token": token}
    settings = settings.replace(**{name: value for name, value in changes.items() if value})
    lock = run.try_agent_lock()
    if lock is None:
        return SyncResult(run, delivered=False, message=_wake(run))
    agent = Agent(run, settings, lock, one_shot=True, on_status=lambda items: on_status(run, items))
    delivered = agent.run()
    return SyncResult(run, delivered, agent.error)


def _wake(run: RunDirectory) -> str:
    pid = run.agent_pid()
    if pid is None:
        return "its agent is at work"
    try:
        os.kill(pid, signal.SIGUSR1)
    except ProcessLookupError:
        return "its agent has just ended; try again"
    return f"its agent (process {pid}) is at work, and was told to try now"
