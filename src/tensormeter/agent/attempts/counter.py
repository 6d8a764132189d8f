"""Record of the attempts at runs, stored in `settings.directory`.

::

    <settings.directory>/runs/
        .attempts/<hash>.json     latest attempt of a run, its processes, and last steps of attempts; a run with a random
                                  ID has such a record once a process has ended
        <run id>@<host>/alive     IDs of the run's processes that are alive on that host; the agent there touches it

Several hosts may share the directory. A process on another host counts as alive if that host's file lists the process
and was touched recently. Ages are differences between times from the file server, because the hosts' clocks differ.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.conventions.attempt_number import DOUBTFUL, MAX_ATTEMPT, KnownMember, Member, choose_attempt
from tensormeter.disk.atomic import write_file
from tensormeter.disk.private import make_directory, open_file, tighten_directory
from tensormeter.errors import RingError
from tensormeter.ring.file import RingFile

__all__ = ["ALIVE_INTERVAL", "AttemptRecord", "count_attempt", "mark_alive"]

ALIVE_INTERVAL: Final = 2.0
"""Interval in seconds at which the agent on a host updates the modification time of the file `alive`."""

_EXPIRES: Final = 4 * ALIVE_INTERVAL
"""Seconds since the last update of `alive` after which the processes that it lists count as gone.

Network file systems show updates some seconds late.
"""

_FOLDER: Final = ".attempts"
_ALIVE: Final = "alive"
_MOST_RUNS: Final = 4000
"""Maximum number of runs to remember. The oldest runs are forgotten first."""
_MOST_PROCESSES: Final = 10_000
_MOST_SETTLED: Final = 1000
_MOST_STEPS: Final = 100
"""Maximum number of attempts per run whose last steps are remembered."""
_MOST_BYTES: Final = 4 << 20


@dataclass
class AttemptRecord:
    """Record of the attempts at one run. Hold `runs_locked` while reading or writing it.

    Attributes:
        path: Path of the file.
        attempt: Number of the latest attempt; 0 if none is recorded.
        provisional: Whether other machines may have made earlier attempts, because no server has confirmed the number.
        processes: Rank, world size, launch, host and start time of the latest attempt's processes, by process ID.
        steps: Highest step that the ended processes of each attempt logged, by attempt number.
        settled: Attempt number that a server assigned, by process ID. The host that asked first stored it.
    """

    path: Path
    attempt: int = 0
    provisional: bool = True
    processes: dict[str, tuple[int | None, int | None, str, str, float]] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: RunDirectory, project: str) -> "AttemptRecord":
        """Read the record of a run; return an empty record if none can be read."""
        run = f"{project}/{directory.run['run_id']}"
        name = hashlib.sha256(run.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        record = cls(directory.path.parent / _FOLDER / f"{name}.json")
        document = _read_json(record.path)
        try:
            record.attempt = max(0, int(document["attempt"]))
            record.provisional = bool(document["provisional"])
            record.processes = {
                str(process): (_number(rank), _number(world), str(launch), str(host), float(began))
                for process, (rank, world, launch, host, began) in document["processes"].items()
            }
            record.steps = {int(attempt): int(step) for attempt, step in document["steps"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            record = cls(record.path)
        record.settled = _read_settled(document.get("settled"))
        if not record.attempt:  # earlier versions counted all runs in one file
            before = _read_json(directory.path.parent / ".attempts.json").get(run)
            if isinstance(before, int) and before > 0:
                record.attempt, record.provisional = before, False
        return record

    def write(self) -> None:
        """Write the record.

        Raises:
            OSError: The file cannot be written.
        """
        new = not self.path.exists()
        make_directory(self.path.parent)
        tighten_directory(self.path.parent)
        document = {
            "attempt": self.attempt,
            "provisional": self.provisional,
            "processes": dict(list(self.processes.items())[-_MOST_PROCESSES:]),
            "steps": dict(sorted(self.steps.items())[-_MOST_STEPS:]),
            "settled": dict(list(self.settled.items())[-_MOST_SETTLED:]),
        }
        write_file(self.path, json.dumps(document))
        if new:
            _forget_oldest(self.path.parent)

    def add(self, member: Member, attempt: int, host: str, now: float) -> None:
        """Add a process to the latest attempt or a new one. Ignore processes of earlier attempts."""
        if attempt > self.attempt:
            self.attempt, self.processes = attempt, {}
        if attempt == self.attempt:
            if any(self.settled.get(process) == attempt for process in self.processes):
                self.settled[member.process] = attempt
            self.processes[member.process] = (member.rank, member.world_size, member.launch, host, now)

    def settle(self, attempt: int, number: int, last_step: int | None, *, confirmed: bool) -> None:
        """Replace the provisional number of an attempt.

        Args:
            attempt: Provisional number.
            number: New number.
            last_step: Highest step of the attempt's ended processes; None if there is none.
            confirmed: Whether a server assigned the number.
        """
        if confirmed and self.attempt == attempt:
            self.settled |= {process: self.settled.get(process, number) for process in self.processes}
        if last_step is not None:
            self.steps.pop(attempt, None)
            self.note_step(number, last_step)
        if self.attempt == attempt:
            self.attempt = number
            self.provisional = self.provisional and not confirmed

    def note_step(self, attempt: int, step: int) -> None:
        """Record that a process of an attempt logged steps up to the given step."""
        self.steps[attempt] = max(self.steps.get(attempt, step), step)

    def last_step(self, attempt: int) -> int | None:
        """Return the highest known step of all attempts before the given one."""
        return max((step for number, step in self.steps.items() if number < attempt), default=None)


def count_attempt(
    directory: RunDirectory, project: str, member: Member, *, resume: bool, number: int | None = None
) -> tuple[int, bool]:
    """Choose and store the number of the attempt that a process on this host belongs to.

    Call this while holding `runs_locked`, before the process has a ring. It does not use the network, unless the
    directory is on a network file system.

    Args:
        directory: Directory of the run.
        project: Project of the run.
        member: Process that needs a number.
        resume: Whether the run had an earlier attempt, possibly on another machine.
        number: Attempt number to store, if it is already known.

    Returns:
        Attempt number, starting at 1, and whether it is provisional.

    Raises:
        OSError: The record cannot be written.
    """
    record = AttemptRecord.read(directory, project)
    host, now = directory.run["host"], _server_time(directory.path.parent)
    here = _living_here(directory)
    if number is None:
        least = 2 if resume else 1
        known = _members(record, directory, {host: here}, now, resume=resume)
        number = choose_attempt(member, known, resume=resume, least=least)
        if number > record.attempt > 0:  # a new attempt, unless a process on another host is alive
            living = {host: here, **_living_elsewhere(record, directory, now)}
            known = _members(record, directory, living, now, resume=resume)
            number = choose_attempt(member, known, resume=resume, least=least)
        if not known:
            record.provisional = True
    elif number > record.attempt:
        record.provisional = False
    record.add(member, number, host, now)
    record.write()
    mark_alive(directory, [*here, member.process])
    return number, record.provisional


def mark_alive(directory: RunDirectory, processes: Iterable[str] | None) -> None:
    """Mark processes of the run as alive on this host. Hold `runs_locked` when passing a list.

    Args:
        directory: Directory of the run.
        processes: IDs of the living processes; None to only touch the file, because they have not changed.
    """
    path = directory.path / _ALIVE
    with contextlib.suppress(OSError):
        if processes is None:
            os.utime(path, follow_symlinks=False)
            return
        if ids := list(processes):
            write_file(path, json.dumps(ids))
        else:
            path.unlink(missing_ok=True)


def _members(
    record: AttemptRecord, directory: RunDirectory, living: Mapping[str, set[str]], now: float, *, resume: bool
) -> list[KnownMember]:
    """Return the processes whose attempt is known, and whether each one is alive as far as this host can detect."""
    here = directory.run["host"]
    if not record.attempt:  # earlier processes of a run with a random ID are not in the record
        members = [KnownMember(process, attempt=1, alive=True) for process in living[here]]
        return members or ([KnownMember("", attempt=1)] if directory.spool.exists() else [])
    members = []
    for process, (rank, world_size, launch, host, began) in record.processes.items():
        age = max(0.0, now - began)
        alive = process in living.get(host, ()) and (host == here or not resume or age < DOUBTFUL)
        members.append(KnownMember(process, rank, world_size, launch, record.attempt, alive, age))
    # Child processes, and other processes that are not in the record.
    others = living[here] - record.processes.keys()
    members += [KnownMember(process, attempt=record.attempt, alive=True) for process in others]
    return members or [KnownMember("", attempt=record.attempt)]


def _living_elsewhere(record: AttemptRecord, directory: RunDirectory, now: float) -> dict[str, set[str]]:
    """Return the run's living processes on other hosts that have processes of the latest attempt, by host."""
    hosts = {host for *_, host, _ in record.processes.values()} - {directory.run["host"]}
    run = directory.run["run_id"]
    return {host: _living_at(directory.path.parent / f"{run}@{host}", now) for host in hosts if "/" not in host}


def _living_here(directory: RunDirectory) -> set[str]:
    processes = set()
    for path in directory.ring_files():
        with contextlib.suppress(RingError, OSError):
            ring = RingFile.open(path)
            if ring.writer_alive():
                processes.add(ring.process)
    return processes


def _living_at(path: Path, now: float) -> set[str]:
    """Return the run's living processes on another host, read from that host's folder."""
    try:
        # Open the file, so that its modification time does not come from a cache.
        with open(open_file(path / _ALIVE, os.O_RDONLY), "rb") as file:
            if now - os.fstat(file.fileno()).st_mtime > _EXPIRES:
                return set()
            processes = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return set()
    return {process for process in processes if isinstance(process, str)} if isinstance(processes, list) else set()


def _server_time(runs: Path) -> float:
    """Return the current time of the file server that stores the runs."""
    path = runs / ".lock"
    with contextlib.suppress(OSError):
        os.utime(path, follow_symlinks=False)
        return path.lstat().st_mtime
    return time.time()


def _forget_oldest(folder: Path) -> None:
    with contextlib.suppress(OSError):
        paths = list(folder.glob("*.json"))
        if len(paths) > _MOST_RUNS:
            paths.sort(key=lambda path: path.lstat().st_mtime)
            for path in paths[: len(paths) - _MOST_RUNS]:
                path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(open_file(path, os.O_RDONLY), "rb") as file:
            document = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_settled(document: Any) -> dict[str, int]:
    items = document.items() if isinstance(document, dict) else ()
    return {process: number for process, number in items if type(number) is int and 1 <= number <= MAX_ATTEMPT}
