"""Delivery of the data that earlier runs have left on this machine."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tensormeter.agent.leftovers import Leftover, describe_rejections
from tensormeter.agent.run_directory.directory import RunDirectory, find_runs
from tensormeter.agent.spool.spool import Spool
from tensormeter.errors import SpoolError, TensormeterError
from tensormeter.settings import Settings, default_endpoint, is_loopback

__all__ = ["SkippedRun", "SyncResult", "belongs_to", "sync_runs", "wake_agent"]

_SHOWN: Final = ("endpoint", "exporters", "token_file", "buffer_directory")
_NOT_SETTINGS_OF_DELIVERY: Final = ("mode", "directory", "agent")


@dataclass(frozen=True)
class SyncResult:
    """Result of delivering one run.

    Attributes:
        run: Directory of the run, which is deleted if everything was delivered and nothing is kept.
        delivered: Whether everything was delivered, apart from rejected and lost items.
        message: Reason for an incomplete delivery; empty if there is none.
        note: Description of the caller's settings that replaced the run's settings, with the reason; empty if none did.
        cut: Descriptions of the run's processes that ended abruptly. Their last values may be missing.
        accepted: Whether receivers accepted everything, even if they have not yet stored all of it durably.
        leftover: Data that the run leaves on this machine, and its losses.
    """

    run: RunDirectory
    delivered: bool
    message: str = ""
    note: str = ""
    cut: Sequence[str] = ()
    accepted: bool = False
    leftover: Leftover = field(default_factory=Leftover)

    @property
    def is_complete(self) -> bool:
        """Whether everything was delivered, nothing was rejected, and a command has already reported all losses."""
        return self.delivered and not self.leftover.unreported and not self.leftover.rejected

    @property
    def outcome(self) -> str:
        """Description of the result for users."""
        run, left = self.run.path, self.leftover
        losses = left.unreported or left.losses
        lost = f"{sum(losses.values()):,} points were lost: {_list(losses)}" if losses else ""
        kept = f"{run} keeps the remaining files; to delete them, run `tensormeter spool purge {run.name}`"
        if not self.delivered or left.rejected:
            if self.delivered:
                words = []
            elif self.accepted:
                words = [f"delivered, but {self.message}"]
            else:
                words = [f"not delivered: {self.message or 'see its agent.log'}"]
            if left.rejected:
                quarantined = (
                    f"{describe_rejections(left.rejected)} (quarantined); to queue them again, run `tensormeter spool "
                    f"retry {run.name}`; to delete them, run `tensormeter spool purge --rejected {run.name}`"
                )
                words.append(quarantined if words else f"not delivered: {quarantined}")
            return "; ".join([*words, *([lost] if lost else [])])
        if left.unreported:
            return f"delivered, but {lost}" + (f"; {kept}" if left.keeps_folder else "")
        if left.keeps_folder:
            return f"nothing to deliver; {lost or 'a file was damaged'}, as reported before; {kept}"
        return "delivered"


@dataclass(frozen=True)
class SkippedRun:
    """A folder that was skipped, and the reason."""

    path: Path
    reason: str


def sync_runs(
    directory: Path,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    caller: Settings | None = None,
    given: bool = False,
    foreign: bool = True,
    marks: bool = False,
    choose: Callable[[RunDirectory], bool] = lambda run: True,
    on_status: Callable[[RunDirectory, int], None] = lambda run, items: None,
) -> Iterator[SyncResult | SkippedRun]:
    """Deliver every run below a directory, one after the other. A failing run does not stop the others.

    A run with a living agent is left to that agent, which is asked to retry immediately. This function blocks during
    delivery, and gives up on a run when its receiver fails three times in a row.

    Args:
        directory: `Settings.directory` of the runs.
        endpoint: Endpoint to deliver to; None to use each run's endpoint.
        token: Bearer token; None to use the token from the environment.
        caller: Settings for untrusted runs; None to use settings from the environment. Trusted runs use their own.
        given: Whether the directory was given by its path, which makes all of its runs untrusted.
        foreign: Whether to deliver untrusted runs.
        marks: Whether to mark losses as reported, because the caller shows them to a user.
        choose: Function that returns whether to deliver a run.
        on_status: Callback that periodically receives a run and the number of its undelivered items.
    """
    runs, refused = find_runs(directory, given=given, foreign=foreign)
    yield from (SkippedRun(path, reason) for path, reason in refused)
    for run in runs:
        try:
            if choose(run):
                yield _sync(run, endpoint, token, caller, on_status, marks=marks)
        except (TensormeterError, OSError) as error:
            doubt = f" ({run.doubt})" if run.doubt else ""
            yield SyncResult(run, delivered=False, message=f"{error}{doubt}")


def belongs_to(run: RunDirectory, url: str) -> bool:
    """Return whether a run is for a server that has just started at `url`.

    The run is for that server if its endpoint has the same host and port, or if it was offline and has the default
    endpoint. All loopback addresses count as the same host.
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
    caller: Settings | None,
    on_status: Callable[[RunDirectory, int], None],
    *,
    marks: bool,
) -> SyncResult:
    settings = run.settings(caller).replace(mode="online")
    changes = {"endpoint": endpoint, "token": token}
    settings = settings.replace(**{name: value for name, value in changes.items() if value})
    if unread := run.unread_rings:
        return SyncResult(run, delivered=False, message=unread)
    note = _note(run, settings)
    with run.siblings_locked():  # a process that is joining the run starts its agent first
        lock = run.try_agent_lock()
    if lock is None:
        return SyncResult(run, delivered=False, message=wake_agent(run), note=note)
    from tensormeter.agent.agent import Agent  # not needed where no run is left: a server starts faster, and is smaller

    agent = Agent(run, settings, lock, one_shot=True, on_status=lambda items: on_status(run, items))
    delivered = agent.run()
    message = agent.error
    if endpoint is None and "experiment" in agent.unreachable:
        message += (
            f"; the run's destination is the server at {settings.endpoint}; start it, or choose another one with "
            "--endpoint"
        )
    if marks and agent.leftover.unreported:
        _mark_reported(run)
    return SyncResult(run, delivered, message, note, agent.cut, agent.accepted, agent.leftover)


def _mark_reported(run: RunDirectory) -> None:
    if run.spool.exists():
        with contextlib.suppress(SpoolError), closing(Spool(run.spool)) as spool:
            spool.mark_losses_reported()


def _list(losses: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {items:,}" for reason, items in losses.items())


def _note(run: RunDirectory, used: Settings) -> str:
    """Return a description of the settings in `run.json` that were not used."""
    if not run.doubt:
        return ""
    ours: dict[str, Any] = json.loads(json.dumps(used.to_json()))
    theirs = {name: value for name, value in run.run["settings"].items() if name not in _NOT_SETTINGS_OF_DELIVERY}
    differ = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
    if not differ:
        return ""
    shown = [f"{name} {_shorten(ours[name])} (run.json: {_shorten(theirs[name])})" for name in differ if name in _SHOWN]
    others = [name for name in differ if name not in _SHOWN]
    shown += [", ".join(others)] if others else []
    return f"delivered with this command's settings, not those in its run.json, because {run.doubt}: {'; '.join(shown)}"


def _shorten(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "none" if value is None else text if len(text) <= 100 else f"{text[:100]}..."


def wake_agent(run: RunDirectory) -> str:
    """Ask the agent that is working on a run to retry now, and return a description of the result for users."""
    if run.doubt:
        return "its agent is running"  # the process id in the folder cannot be trusted
    pid = run.agent_pid()
    if pid is None or not _is_agent(pid):
        return "its agent is running"
    try:
        os.kill(pid, signal.SIGUSR1)
    except ProcessLookupError:
        return "its agent has just ended; try again"
    return f"its agent (process {pid}) is running, and was asked to retry now"


def _is_agent(pid: int) -> bool:
    """Return whether a process may be an agent. SIGUSR1 ends most other processes.

    Its process ID comes from `agent.lock`, which may be out of date or written by others.
    """
    try:
        return b"tensormeter" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return not Path("/proc/self").exists()
    except OSError:
        return False
