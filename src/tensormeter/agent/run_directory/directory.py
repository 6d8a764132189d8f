"""Run directories, which hold the undelivered data of a run on one node.

::

    <settings.directory>/runs/
        .lock                     held briefly while runs are created or removed
        <run id>@<host>/
            run.json              the run's ID and name, path of its rings, settings
            agent.lock            held by the agent while it runs; contains its process ID
            agent.log             output of the agent
            spool.sqlite          requests that are waiting for delivery
            reserve               disk space for marking requests as delivered
            attempts.json, alive  attempt numbers; IDs of the living processes
            exporters/            state of the exporters
            rings/                rings that are not in shared memory

The rings are in `settings.buffer_directory` (shared memory) if there is one, and otherwise in the run directory.
Folders (0700) and files (0600) are private. The directory is deleted when everything in it has been delivered.

A folder with a spool or rings is a run, even if its `run.json` is missing or damaged. If `run.json` cannot be read, the
run's ID and host are taken from the folder's name. Such runs are delivered like untrusted runs.

A run directory is untrusted (`doubt`) if others could have put it there, or if a command was given its path. Only the
run's identity and the temporality of its sums are then read from its `run.json`; all other settings are the caller's.
"""

import contextlib
import functools
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.run_directory.description import (
    RefusedRunError,
    check_contents,
    describe_folder,
    encode_description,
    read_description,
)
from tensormeter.agent.run_directory.paths import holds_data, path_when_made, ring_directory, ring_name, run_path
from tensormeter.agent.run_directory.removal import REMOVED, remove_rings, remove_run
from tensormeter.agent.run_directory.shared_memory import make_private_directory
from tensormeter.disk.atomic import write_file
from tensormeter.disk.locks import locked, try_lock
from tensormeter.disk.private import fault, make_directory, tighten_contents, tighten_directory, weakness
from tensormeter.errors import SettingsError, SpoolError
from tensormeter.settings import Settings

__all__ = ["RunDirectory", "find_runs", "list_runs", "runs_locked"]

_BELIEVED: Final = ("project", "run_id", "name", "temporality")
"""Settings that are used even from an untrusted run.json: they identify the run and determine how its rows are read."""


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory on this node.

    Attributes:
        path: Path of the directory.
        rings: Folder for the ring files, in shared memory if there is any.
        run: Contents of `run.json`: run_id, name, host, created (nanoseconds), and the settings of the latest process,
            without secrets.
        doubt: Reason why the run is untrusted and the settings in `run` are not used, as a phrase; empty if it is
            trusted.
        damage: Phrase that describes the damage to `run.json`; empty if there is none.
    """

    path: Path
    rings: Path
    run: dict[str, Any]
    doubt: str = ""
    damage: str = ""

    @classmethod
    def create(cls, settings: Settings, run_id: str, name: str) -> "RunDirectory":
        """Create the directory, or use the one that another rank created, and write `run.json`.

        Hold `runs_locked` while calling this.

        Raises:
            OSError: The directory cannot be created or written, or belongs to another user.
        """
        host = socket.gethostname().replace("/", "-")
        path = settings.directory / "runs" / f"{run_id}@{host}"
        _make_runs_directory(settings.directory)
        for removed in path.parent.glob(f"{REMOVED}*"):
            shutil.rmtree(removed, ignore_errors=True)
        run: dict[str, Any] = {
            "version": 1,
            "run_id": run_id,
            "name": name,
            "host": host,
            "created": time.time_ns(),
            "rings": str(ring_directory(settings.buffer_directory, path)),
            "settings": settings.to_json(),
        }
        directory = cls(path, Path(str(run["rings"])), run)
        try:
            directory.restore()
        except OSError:
            with contextlib.suppress(OSError):
                path.rmdir()  # remove an empty folder, because the run is stored elsewhere
            raise
        return directory

    @classmethod
    def open(cls, path: Path, *, given: bool = False) -> "RunDirectory":
        """Open an existing run directory.

        Args:
            path: Path of the directory.
            given: Whether the path was given to a command, so that the directory's origin is unknown.

        Raises:
            RefusedRunError: The run directory contains something that no run creates, such as a link.
            SpoolError: The path is not a run directory.
        """
        if (path / "run.json").is_symlink():
            raise RefusedRunError(f"{path / 'run.json'} is a link, which tensormeter never creates; remove it")
        damage = ""
        try:
            run, owner, matches = read_description(path)
            if not matches:
                damage = (
                    "its run.json does not match its checksum (if you edited run.json, remove the checksum from it)"
                )
        except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
            if not holds_data(path):
                raise SpoolError(f"{path} is not a run directory: {error}") from error
            if isinstance(error, PermissionError):
                raise RefusedRunError(f"its run.json cannot be read: {error}") from error
            missing = isinstance(error, FileNotFoundError)
            damage = "it has no run.json" if missing else f"its run.json cannot be read ({_first_words(error)})"
            try:
                run, owner = describe_folder(path), path.stat().st_uid
            except ValueError:
                raise RefusedRunError(
                    f"{damage}, and the folder's name is not a run's; rename the folder to RUN_ID@HOST"
                ) from error
        weak = weakness(path)
        if not weak and owner not in (0, os.geteuid()):
            weak = f"run.json belongs to user {owner}"
        doubt = weak or ("the folder was given by its path" if given and not damage else damage)
        if doubt:
            check_contents(path)
        buffer = run["settings"].get("buffer_directory")
        if doubt or not isinstance(buffer, str | None):
            buffer = Settings().buffer_directory
        place = path.absolute() if weak else path_when_made(path, run)
        return cls(path, ring_directory(None if buffer is None else Path(buffer), place), run, doubt, damage)

    def restore(self) -> None:
        """Create the directory if it does not exist, and write `run.json`. Hold `runs_locked` while calling this.

        Raises:
            OSError: The directory cannot be created or written, or belongs to another user.
        """
        make_directory(self.path)
        tighten_directory(self.path)
        tighten_contents(self.path)
        write_file(self.path / "run.json", encode_description(self.run))

    def settings(self, caller: Settings | None = None) -> Settings:
        """Return the settings for delivering the run.

        A trusted run uses its own settings, with secrets from this process's environment. An untrusted run uses the
        caller's settings, except for the run's identity and the temporality of its sums. Invalid values in a damaged
        `run.json` are ignored. The setting `directory` is always the current one, because the run may have been moved
        or copied from another machine.

        Args:
            caller: Settings for an untrusted run; None to use those from this process's environment.

        Raises:
            SettingsError: The run's settings are invalid, perhaps because another version wrote them.
        """
        written: dict[str, Any] = self.run["settings"]
        here = {"directory": os.fspath(self.path.parents[1])}
        if not self.doubt:
            try:
                return Settings.from_json(written | here)
            except TypeError as error:
                raise SettingsError(f"{self.path / 'run.json'}: invalid settings: {error}") from None
        settings = (caller or Settings()).replace(**here)
        for name in _BELIEVED:
            if not self.damage and name in written:
                settings = settings.replace(**{name: written[name]})
            elif isinstance(written.get(name), str):
                # One flipped bit must not prevent delivery of the run.
                with contextlib.suppress(SettingsError):
                    settings = settings.replace(**{name: written[name]})
        return settings

    def to_json(self) -> dict[str, Any]:
        """Return a description for a new agent, to pass to `from_json`. The agent uses it instead of files on disk."""
        return {"path": os.fspath(self.path), "rings": os.fspath(self.rings), "run": self.run}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunDirectory":
        """Return the run directory that `to_json` described."""
        return cls(Path(values["path"]), Path(values["rings"]), values["run"])

    def siblings_locked(self) -> AbstractContextManager[None]:
        """Return `runs_locked` for the folder that contains this run directory.

        Raises:
            OSError: The lock file cannot be created.
        """
        return locked(self.path.parent / ".lock")

    @property
    def spool(self) -> Path:
        return self.path / "spool.sqlite"

    @property
    def agent_log(self) -> Path:
        return self.path / "agent.log"

    def ring_files(self) -> list[Path]:
        """Return the rings that exist now, without incomplete rings and rings in folders that others can write to."""
        paths: list[Path] = []
        for folder in dict.fromkeys(self.ring_folders):
            if folder != self.rings_on_disk and (fault(folder.parent) or fault(folder)):
                continue
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                paths += [
                    Path(entry.path) for entry in entries if entry.name.endswith(".ring") and not entry.is_symlink()
                ]
        return sorted(paths)

    @property
    def rings_weakness(self) -> str:
        """Reason why the folder in shared memory is ignored; empty if it is used or does not exist."""
        if self.rings == self.rings_on_disk:
            return ""
        return fault(self.rings.parent) or fault(self.rings)

    @property
    def unread_rings(self) -> str:
        """Description of this run's rings that are ignored, and what to do about them; empty if there are none."""
        weak = self.rings_weakness
        if weak and any(_owner(path) == os.geteuid() for path in self.rings.glob("*.ring")):
            return (
                f"some points of the run are in {self.rings}, which was not read: {weak}; if you trust that folder, "
                "run chmod 700 on it"
            )
        written = Path(self.run["rings"] or self.rings)
        same_run = written.name == ring_name(path_when_made(self.path, self.run))
        if self.doubt and same_run and written != self.rings and any(written.glob("*.ring")):
            return (
                f"some points of the run are in {written}, which was not read: "
                f"set TENSORMETER_BUFFER_DIR to {written.parent.parent}, and run this as the user who recorded it"
            )
        return ""

    def make_ring_directory(self, folder: Path | None = None) -> None:
        """Create one of `ring_folders`; None creates the folder in shared memory.

        Raises:
            OSError: The folder cannot be created, or other users can write to it.
        """
        folder = folder or self.rings
        if folder == self.rings_on_disk:
            make_directory(folder)
            return
        make_private_directory(folder.parent)
        make_private_directory(folder)

    def remove_ring_directory(self) -> None:
        """Delete the folder in shared memory if it contains no rings. Hold `runs_locked` while calling this."""
        with contextlib.suppress(OSError):
            own = {path.name for path in (self.memory_lock, self.wake_pipe) if path is not None}
            if {*os.listdir(self.memory)} <= own:
                self.wake_pipe.unlink(missing_ok=True)
                if self.memory_lock is not None:
                    self.memory_lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.rings.rmdir()
        for folder in self.ring_folders[2:]:
            with contextlib.suppress(OSError):
                folder.rmdir()

    @functools.cached_property
    def ring_folders(self) -> list[Path]:
        """Folders for rings: in shared memory, in the run directory, and others in case neither can be mapped."""
        name = ring_name(path_when_made(self.path, self.run)) if self.rings == self.rings_on_disk else self.rings.name
        others = [
            place / f"tensormeter-{os.getuid()}" / name
            for place in (Path("/dev/shm"), Path(tempfile.gettempdir()))  # noqa: S108 - its folder is private (0700)
            if place.is_dir()
        ]
        return [self.rings, self.rings_on_disk, *(other for other in others if other != self.rings)]

    @property
    def rings_on_disk(self) -> Path:
        """Folder for rings that do not fit into `rings`."""
        return self.path / "rings"

    @property
    def memory(self) -> Path:
        """The run's own folder in shared memory, or in a directory for temporary files if there is no shared memory."""
        return self.rings if self.rings != self.rings_on_disk else self.ring_folders[2]

    @property
    def agent_lock(self) -> Path:
        return self.path / "agent.lock"

    @property
    def memory_lock(self) -> Path | None:
        """The agent's second lock, in shared memory, where no disk can delay it; None if there is no shared memory."""
        return None if self.rings == self.rings_on_disk else self.rings / "agent.lock"

    @property
    def wake_pipe(self) -> Path:
        """Named pipe through which processes wake the agent."""
        return self.memory / "agent.wake"

    def try_agent_lock(self) -> int | None:
        """Acquire the agent's lock if no process holds it, and empty its file.

        Returns:
            Descriptor that holds the lock, even after exec in a child that inherits it; None if another process holds
            the lock.
        """
        return _try_empty_lock(self.agent_lock)

    def is_held_by_agent(self) -> bool:
        """Return whether the process that holds the agent's lock is an agent. Call this only if the lock is held.

        Agents write into the lock file. Commands such as `tensormeter sync` hold the lock, too, and leave the file
        empty.
        """
        try:
            return self.agent_lock.stat().st_size > 0
        except OSError:
            return False

    def try_memory_lock(self) -> int | None:
        """Acquire the lock in shared memory, like `try_agent_lock`.

        Raises:
            OSError: There is no shared memory, or other users can write to the folder.
        """
        if self.memory_lock is None:
            raise FileNotFoundError("there is no shared memory")
        if weak := self.rings_weakness:
            raise PermissionError(weak)
        return _try_empty_lock(self.memory_lock)

    def agent_pid(self) -> int | None:
        """Return the process ID of the agent that holds the lock; None if the agent is a thread or just starting."""
        for path in (self.agent_lock, self.memory_lock):
            if path is not None and (path == self.agent_lock or not self.rings_weakness):
                with contextlib.suppress(OSError, ValueError):
                    return int(path.read_text())
        return None

    def remove(self) -> None:
        """Delete the directory, which must have no rings. Hold `runs_locked` and the agent's lock while calling this.

        Raises:
            OSError: The directory cannot be deleted.
        """
        if self.rings != self.rings_on_disk:
            remove_rings(self.rings)
        usual = self.path == run_path(self.path.parents[1], self.run)
        remove_run(self.path, whole=usual and not self.doubt and not weakness(self.path))


def list_runs(directory: Path) -> list[RunDirectory]:
    """Return every run directory below `settings.directory`, from oldest to newest. Other folders are omitted.

    The argument may also be a folder that contains run directories, or a single run directory.
    """
    return find_runs(directory)[0]


def find_runs(
    directory: Path, *, given: bool = False, foreign: bool = True
) -> tuple[list[RunDirectory], list[tuple[Path, str]]]:
    """Find run directories, as `list_runs` does, and the folders that are refused.

    Args:
        directory: Directory, as for `list_runs`.
        given: Whether the directory's path was given to a command, as for `RunDirectory.open`.
        foreign: Whether to include untrusted runs.

    Returns:
        The runs, and the path and reason of each refused folder.
    """
    runs: list[RunDirectory] = []
    refused: list[tuple[Path, str]] = []
    if not foreign and (reason := weakness(directory / "runs")):
        return [], [(directory, reason)]
    if given:
        directory = directory.resolve()
    for path in [directory, *_folders(directory, refused), *_folders(directory / "runs", refused)]:
        try:
            if given and path.resolve() != path:
                raise RefusedRunError(f"{path} is a link, or its path contains one; give the real path")
            run = RunDirectory.open(path, given=given)
            if run.doubt and not foreign:
                raise RefusedRunError(f"{run.doubt}; `tensormeter sync` delivers it" if run.damage else run.doubt)
        except RefusedRunError as error:
            refused.append((path, str(error)))
        except PermissionError as error:
            refused.append((path, f"it cannot be read: {error.strerror}"))
        except (SpoolError, OSError):  # OSError: the directory has just been removed
            continue
        else:
            runs.append(run)
    return sorted(runs, key=lambda run: run.run["created"]), refused


@contextlib.contextmanager
def runs_locked(directory: Path, patience: float = 5.0) -> Iterator[None]:
    """Prevent runs below a `settings.directory` from being created or removed on this node during the block.

    Args:
        directory: The `settings.directory`.
        patience: Maximum seconds to wait for the lock, as for `locked`.

    Raises:
        OSError: The directory cannot be created, or files in it cannot be locked.
    """
    _make_runs_directory(directory)
    with locked(directory / "runs" / ".lock", patience):
        yield


def _try_empty_lock(path: Path) -> int | None:
    """Acquire a lock, as `try_lock` does, and remove the process ID that a killed agent has left in its file."""
    lock = try_lock(path)
    if lock is not None:
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
    return lock


def _folders(directory: Path, refused: list[tuple[Path, str]]) -> list[Path]:
    """Return the folders in a directory that may be runs. If the directory cannot be read, add it to `refused`."""
    try:
        with os.scandir(directory) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        refused.append((directory, f"it cannot be read: {error.strerror}"))
        return []


def _first_words(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _make_runs_directory(directory: Path) -> None:
    """Create the private folder for runs, and make its parent private too if the parent contains nothing else."""
    runs = directory / "runs"
    make_directory(runs)
    tighten_directory(runs)
    status = directory.stat()
    if status.st_mode & 0o077 and status.st_uid == os.geteuid() and os.listdir(directory) == ["runs"]:
        tighten_directory(directory)


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None
