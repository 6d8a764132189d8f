"""The agent's pulse: a timestamp in each ring's header, which shows recording processes that the agent is alive.

Recording processes only compare words in memory, which costs almost nothing and never waits for a disk. The agent
writes the pulse on a separate thread, because an agent that is waiting for a disk is alive and must not be replaced.
"""

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.disk.private import open_file
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import HEADER_BYTES, MAGIC, VERSION, HeaderWord

__all__ = ["Pulse"]

_INTERVAL: Final = 1.0
_PATIENCE: Final = 5.0
_RESOLUTION: Final = 2_000_000_000
"""Resolution of a folder's modification time in nanoseconds, with a margin."""


class Pulse:
    """Thread that writes the time into a run's rings until `stop`. It finds rings in shared memory by itself."""

    def __init__(self, directory: RunDirectory, on_beat: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            directory: Directory of the run.
            on_beat: Callback that runs on the pulse's thread with each beat. It must not wait for a disk.
        """
        self._directory = directory
        self._on_beat = on_beat
        self._headers: dict[Path, memoryview] = {}
        self._listed: tuple[int, int] | None = None
        """Inode and modification time of the folder when it was listed; None if it must be listed again."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensormeter-pulse", daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._thread.start()

    def stop(self) -> None:
        """End the thread. This blocks briefly, or for up to 5 seconds while `on_beat` is running."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE)

    def add(self, ring: RingFile) -> None:
        """Also write the time into this ring, which need not be in shared memory."""
        self._headers.setdefault(ring.path, ring.words)

    def remove(self, ring: RingFile) -> None:
        """Stop writing the time into a ring that is about to be deleted."""
        self._headers.pop(ring.path, None)

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self._discover()
            for words in list(self._headers.values()):
                words[HeaderWord.AGENT_PID] = os.getpid()
                words[HeaderWord.PULSE] = time.monotonic_ns()
            self._on_beat()
            if self._stopped.wait(_INTERVAL):
                return

    def _discover(self) -> None:
        if self._directory.rings == self._directory.rings_on_disk:
            return
        status = self._directory.rings.stat()
        listed = status.st_ino, status.st_mtime_ns
        if listed == self._listed or self._directory.rings_weakness:
            return
        # A file may appear within the resolution of the modification time, after the folder is listed.
        self._listed = listed if time.time_ns() - status.st_mtime_ns > _RESOLUTION else None
        for name in self._directory.rings.glob("*.ring"):
            with contextlib.suppress(OSError):  # it was deleted meanwhile
                path = name.resolve()
                if path not in self._headers and (words := _header(path)) is not None:
                    self._headers.setdefault(path, words)


def _header(path: Path) -> memoryview | None:
    """Return the header words of a ring; None if the file is not a ring in this version's format."""
    with open(open_file(path, os.O_RDWR), "r+b") as file:
        if os.fstat(file.fileno()).st_size < HEADER_BYTES:
            return None
        words = memoryview(mmap.mmap(file.fileno(), HEADER_BYTES)).cast("q")
    return words if words[HeaderWord.MAGIC] == MAGIC and words[HeaderWord.VERSION] == VERSION else None
