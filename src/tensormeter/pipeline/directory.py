"""Run directories: where a run keeps, on one node, what is not delivered yet.

::

    <settings.directory>/runs/
        .lock                     held for moments, while runs come and go
        <run id>@<host>/
            run.json              what the run is called, where its rings are, where it wants to be delivered
            agent.lock            held by the agent for as long as it lives; holds its process id
            agent.log
            spool.sqlite

Rings lie in `settings.buffer_directory` (shared memory), or in the run directory where there is none.
The directory is private (mode 0700) and is deleted when everything in it has been delivered.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any, Final

from tensormeter.errors import SpoolError
from tensormeter.settings import Settings

__all__ = ["RunDirectory", "list_runs", "make_memory_directory", "memory_directory", "runs_locked"]

_LOCK_DEADLINE: Final = 5.0
_LOCK_INTERVAL: Final = 0.01
_REMOVED: Final = ".removed-"


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory on this node.

    Attributes:
        path: The directory.
        rings: Where the ring files are.
        run: The contents of `run.json`: run_id, name, host, created (nanoseconds), and the settings of the process that
            came last, without secrets.
    """

    path: Path
    rings: Path
    run: dict[str, Any]

    @classmethod
    def create(cls, settings: Settings, run_id: str, name: str) -> "RunDirectory":
        """Make the directories, or find those that another rank made. Call it while holding `runs_locked`.

        Raises:
            OSError: They cannot be made.
        """
        host = socket.gethostname()
        path = settings.directory / "runs" / f"{run_id}@{host}"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for removed in path.parent.glob(f"{_REMOVED}*"):
            shutil.rmtree(removed, ignore_errors=True)
        run: dict[str, Any] = {
            "version": 1,
            "run_id": run_id,
            "name": name,
            "host": host,
            "created": time.time_ns(),
            "rings": str(_ring_directory(settings, path)),
            "settings": settings.to_json(),
        }
        directory = cls(path, Path(str(run["rings"])), run)
        directory.restore()
        return directory

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Read an existing directory.

        Raises:
            SpoolError: Not a run directory.
        """
        try:
            run = json.loads((path / "run.json").read_text())
            return cls(path, Path(run["rings"]), dict(run))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpoolError(f"{path} is not a run directory: {error}") from error

    def restore(self) -> None:
        """Make the directory, and its description, if they are not there. Call it while holding `runs_locked`.

        Raises:
            OSError: They cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.path / "run.json.new"
        temporary.write_text(json.dumps(self.run, indent=1))
        temporary.rename(self.path / "run.json")

    def settings(self) -> Settings:
        """The run's settings, with secrets from this process's environment, and `directory` as it is now: the run may have
        been moved, or copied from another machine.

        Raises:
            SettingsError: They were written by a version with other rules.
        """
        return Settings.from_json(self.run["settings"] | {"directory": os.fspath(self.path.parents[1])})

    def siblings_locked(self) -> AbstractContextManager[None]:
        """`runs_locked` for the place where this run directory is.

        Raises:
            OSError: The file of the lock cannot be made.
        """
        return _locked(self.path.parent / ".lock")

    @property
    def spool(self) -> Path:
        return self.path / "spool.sqlite"

    @property
    def agent_log(self) -> Path:
        return self.path / "agent.log"

    def ring_files(self) -> list[Path]:
        """The rings that are there now, whole ones only."""
        return sorted({*self.rings.glob("*.ring"), *self.rings_on_disk.glob("*.ring")})

    def make_ring_directory(self) -> None:
        """Make the place in shared memory.

        Raises:
            OSError: It cannot be made, or somebody else has made it.
        """
        _make_private(self.rings.parent)
        self.rings.mkdir(exist_ok=True, mode=0o700)

    def remove_ring_directory(self) -> None:
        """Delete the place in shared memory if no ring is in it. Call it while holding `runs_locked`."""
        with contextlib.suppress(OSError):
            self.rings.rmdir()

    @property
    def rings_on_disk(self) -> Path:
        """Where rings go that do not fit `rings`."""
        return self.path / "rings"

    def try_agent_lock(self) -> int | None:
        """Take the agent's lock if nobody holds it.

        Returns:
            A descriptor whose open file description holds the lock, also over exec in a child that inherits it; or None.
        """
        descriptor = os.open(self.path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def agent_pid(self) -> int | None:
        """Process id of the agent that holds the lock; None if it is a thread of another process, or just starting."""
        try:
            return int((self.path / "agent.lock").read_text())
        except (OSError, ValueError):
            return None

    def remove(self) -> None:
        """Delete the directory. Call it while holding `runs_locked` and the agent's lock, when there are no rings."""
        if self.path not in self.rings.parents and self.rings.exists():
            shutil.rmtree(self.rings)
        # Renamed first, so that a folder half deleted is never taken for a run; `create` clears away what was left of it.
        removed = self.path.with_name(f"{_REMOVED}{self.path.name}-{time.time_ns()}")
        self.path.rename(removed)
        shutil.rmtree(removed)


def list_runs(directory: Path) -> list[RunDirectory]:
    """Every run directory below `settings.directory`, the oldest first; what is not one is left out.

    A folder that holds run directories, and a run directory itself, will do as well.
    """
    files = [directory / "run.json", *directory.glob("[!.]*/run.json"), *(directory / "runs").glob("[!.]*/run.json")]
    found = []
    for file in files:
        try:
            found.append(RunDirectory.open(file.parent))
        except SpoolError:
            continue
    return sorted(found, key=lambda run: run.run.get("created", 0))


def memory_directory(settings: Settings) -> Path:
    """Where runs are kept when `settings.directory` cannot be used: in shared memory, or among the temporary files."""
    parent = settings.buffer_directory or Path(tempfile.gettempdir())
    return parent / f"tensormeter-{os.getuid()}" / "state"


def make_memory_directory(settings: Settings) -> Path:
    """`memory_directory`, made so that nobody else can write to it.

    Raises:
        OSError: It cannot be made, or somebody else has made it.
    """
    path = memory_directory(settings)
    _make_private(path.parent)
    path.mkdir(exist_ok=True, mode=0o700)
    return path


@contextlib.contextmanager
def runs_locked(directory: Path) -> Iterator[None]:
    """Keep runs below a `settings.directory` from coming or going on this node meanwhile.

    Raises:
        OSError: The directory cannot be made, or files cannot be locked there.
    """
    runs = directory / "runs"
    runs.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(runs / ".lock"):
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock. After 5 s without it, go on without.

    The holder does nothing slow, so the deadline is only met when a holder is stopped (SIGSTOP, a frozen disk), and then
    the worst that happens is a second agent, which finds the first one's lock and leaves.

    Raises:
        OSError: The file cannot be made, or files cannot be locked there.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_DEADLINE
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                Event().wait(_LOCK_INTERVAL)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a child forked meanwhile has it open as well
        os.close(descriptor)


def _make_private(path: Path) -> None:
    """Make a directory, or see that nobody else has made it: its name in shared memory can be foreseen.

    Raises:
        OSError: It belongs to someone else, or others may write to it.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{path} is not a directory that only this user can write to; remove it")


def _ring_directory(settings: Settings, path: Path) -> Path:
    if settings.buffer_directory is None:
        return path / "rings"
    digest = sha256(os.fsencode(path)).hexdigest()[:12]
    return settings.buffer_directory / f"tensormeter-{os.getuid()}" / f"{path.name}-{digest}"
