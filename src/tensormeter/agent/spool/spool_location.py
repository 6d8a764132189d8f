"""Location of a run's spool: on the disk, or in memory while the disk fails."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from tensormeter.agent.run_directory.agent_lock import AgentLock
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.spool.errors import SpoolDamagedError, SpoolVersionError
from tensormeter.agent.spool.memory_spool import MemorySpool, works
from tensormeter.agent.spool.recovery import open_repaired
from tensormeter.agent.spool.spool import Spool
from tensormeter.errors import SpoolError
from tensormeter.logger import get_logger
from tensormeter.settings import Settings

__all__ = ["TROUBLE_DELAY", "TROUBLE_LIMIT", "RestoredError", "SpoolLocation", "disk_fails"]

logger: Final = get_logger("tensormeter.agent")

TROUBLE_DELAY: Final = 1.0
"""Seconds between two attempts to use a spool that refuses writes."""

TROUBLE_LIMIT: Final = 300.0
"""Seconds that the spool may refuse writes before the agent gives up. The disk may work again for the next agent."""

_DISK_PATIENCE: Final = 2.0
"""Seconds that the disk may refuse writes before the agent switches to memory."""

_MEMORY_DELAY: Final = 30.0
"""Seconds between two attempts to switch to memory, if memory had no room."""

_FIRST_DISK_TRIAL: Final = 3.0
_LONGEST_DISK_TRIAL: Final = 60.0
"""Maximum seconds between two checks of whether the disk works again. Each new failure doubles the delay."""

_RESERVE_DELAY: Final = 5.0
"""Seconds between two attempts to reserve disk space."""

_NEXT_TO_NOTHING: Final = 1 << 20
"""Maximum free bytes at which a disk counts as full."""

_LACKS: Final = {
    "fsync": "fsync (the spool may not survive a power failure)",
    "maps": "shared memory maps (the spool is slower)",
}


class RestoredError(SpoolDamagedError):
    """The spool was deleted and has been restored, so it must be reopened."""


class SpoolLocation:
    """Location that opens one run's spool, and moves it between disk and memory.

    Only the agent's main thread may use it. It blocks on the disk.

    Attributes:
        in_memory: Whether the spool is in memory because the disk fails.
        report: Description of the last disk problem for users; empty if there was none.
    """

    def __init__(
        self,
        directory: RunDirectory,
        settings: Settings,
        lock: AgentLock,
        *,
        one_shot: bool,
        is_stopping: Callable[[], bool],
        wait: Callable[[float], object],
    ) -> None:
        """
        Args:
            directory: Directory of the run.
            settings: Settings of the run.
            lock: Lock of the agent.
            one_shot: Whether to give up as soon as the disk fails.
            is_stopping: Function that returns whether the agent has been asked to end.
            wait: Function that waits for at most the given seconds.
        """
        self._directory = directory
        self._settings = settings
        self._lock = lock
        self._one_shot = one_shot
        self._is_stopping = is_stopping
        self._wait = wait
        self._memory = MemorySpool(directory)
        self.in_memory = False
        self.report = ""
        self._returning = False
        """Whether the spool is about to return to the disk."""
        self._not_before = 0.0
        """Time before which trying to switch to memory is pointless."""
        self._disk_trial_at = 0.0
        self._disk_trial_delay = _FIRST_DISK_TRIAL
        self._reserve_at = 0.0

    def open(self, damage: str) -> Spool:
        """Open the spool on the disk or, if the disk fails, the spool in memory.

        Args:
            damage: Description of damage that was detected in use, as for `open_repaired`.

        Raises:
            SpoolError, OSError: Neither spool can be opened.
        """
        began, last_error = time.monotonic(), ""
        while True:
            if self.in_memory and not self._returning:
                with contextlib.suppress(OSError, SpoolError):
                    return self._memory.open(None, self._settings.spool_max_bytes)
            try:
                return self._open_on_disk(damage)
            except (SpoolDamagedError, SpoolVersionError):
                raise
            except (SpoolError, OSError) as error:
                if self.must_leave(began) and self.leave_disk(None, error):
                    continue
                if self._one_shot or self._is_stopping() or time.monotonic() - began > TROUBLE_LIMIT:
                    raise
                if str(error) != last_error:
                    logger.error("%s", error)
                    last_error = str(error)
                self._wait(TROUBLE_DELAY)

    def must_leave(self, since: float) -> bool:
        """Return whether to switch to memory, because the disk has been failing since the given time."""
        return not self._one_shot and time.monotonic() > max(since + _DISK_PATIENCE, self._not_before)

    def leave_disk(self, spool: Spool | None, error: Exception) -> bool:
        """Switch to memory if it has room, and return whether it has. No delivery may use the spool meanwhile.

        Args:
            spool: Spool on the disk; None if it is not open.
            error: Error that the disk caused.
        """
        try:
            self._memory.open(spool, self._settings.spool_max_bytes).close()
        except (OSError, SpoolError) as failure:
            logger.error("%s; moving the spool to memory failed as well: %s", error, failure)
            self._not_before = time.monotonic() + _MEMORY_DELAY
            return False
        self.in_memory, self._returning = True, False
        self._disk_trial_at = time.monotonic() + self._disk_trial_delay
        self._disk_trial_delay = min(2 * self._disk_trial_delay, _LONGEST_DISK_TRIAL)
        self.report = (
            f"cannot use {self._directory.path} ({error}); the spool is kept in memory until the disk works again"
        )
        logger.error("%s", self.report)
        return True

    def try_disk(self) -> bool:
        """Return whether the disk works again, checking only from time to time. If so, the spool must be reopened.

        Raises:
            SpoolError: Another agent has taken over the run's directory.
        """
        now = time.monotonic()
        if now < self._disk_trial_at:
            return False
        self._disk_trial_at = now + self._disk_trial_delay
        try:
            if _is_deleted(self._directory.path):
                with runs_locked(self._directory.path.parents[1]):
                    self._directory.restore()
        except OSError:
            return False
        if not works(self._directory.spool):
            return False
        if not self._lock.complete():
            raise SpoolError(f"another agent is using {self._directory.path} now")
        self._returning = True
        return True

    def restore_deleted(self, spool: Spool) -> None:
        """Restore the run's directory and the spool if they were deleted, from the spool that is still open.

        Raises:
            RestoredError: They were restored, and the spool must be reopened.
            SpoolError: They cannot be restored.
        """
        if not self.in_memory and _is_deleted(self._directory.spool):
            self._restore(spool)

    def keep_room(self, spool: Spool) -> None:
        """Reserve the disk space for marking requests as delivered."""
        now = time.monotonic()
        if now >= self._reserve_at and not spool.keep_room():
            self._reserve_at = now + _RESERVE_DELAY

    def is_full(self) -> bool:
        """Return whether the disk has almost no free space."""
        try:
            return shutil.disk_usage(self._directory.path).free < _NEXT_TO_NOTHING
        except OSError:
            return False

    def _open_on_disk(self, damage: str) -> Spool:
        settings = self._settings
        spool = open_repaired(
            self._directory.spool,
            settings.exporters,
            durability=settings.durability,
            max_bytes=settings.spool_max_bytes,
            damage=damage,
        )
        try:
            self._memory.give_back(spool)
        except BaseException:
            spool.close()
            raise
        if self.in_memory:
            self.in_memory = self._returning = False
            self.report = f"{self._directory.path} works again; the spool is back on disk"
            logger.warning("%s", self.report)
        elif spool.missing and not self.report:
            lacks = " and ".join(_LACKS[feature] for feature in sorted(spool.missing))
            self.report = f"the file system of {self._directory.path} does not support {lacks}"
            logger.warning("%s", self.report)
        return spool

    def _restore(self, spool: Spool) -> NoReturn:
        path = self._directory.path
        try:
            with runs_locked(path.parents[1]):
                self._directory.restore()
                if not self._lock.complete():
                    raise SpoolError(f"{path} was deleted and created again, and another agent is using it")
                spool.save_to(self._directory.spool)
        except OSError as error:
            raise SpoolError(f"{path} was deleted and cannot be created again: {error}") from error
        raise RestoredError(f"{path} was deleted; it was restored from the open spool")


def disk_fails(folder: Path) -> bool:
    """Return whether the disk of a folder refuses to store a small temporary file."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"trial")
            file.flush()
            file.seek(0)
            return file.read() != b"trial"
    except OSError:
        return True


def _is_deleted(path: Path) -> bool:
    """Return whether a file or folder does not exist; False if the disk does not respond."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
