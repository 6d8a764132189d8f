"""The rings of a run on this node, each with the drain that moves its rows into the spool."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.ingest.cut_processes import describe_unknown, end_cut_processes
from tensormeter.agent.ingest.damaged_rings import put_ring_aside
from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.spool import Spool
from tensormeter.disk.fsync import fsync_file, fsync_names
from tensormeter.errors import RingError, SpoolError
from tensormeter.logger import get_logger
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import State
from tensormeter.settings import Settings

__all__ = ["Rings"]

logger: Final = get_logger("tensormeter.agent")


class Rings:
    """Finds rings and drains them. Used by the agent's main thread.

    Attributes:
        unreadable: Errors of rings that are left to the next agent, by path.
        left_at: Time at which the last process ended, or the agent began.
    """

    def __init__(
        self,
        directory: RunDirectory,
        settings: Settings,
        *,
        one_shot: bool,
        on_found: Callable[[RingFile], None],
        on_gone: Callable[[RingFile], None],
    ) -> None:
        """
        Args:
            directory: Directory of the run.
            settings: Settings of the run.
            one_shot: Whether to drain without waiting for processes that still run.
            on_found: Callback for each ring that is found.
            on_gone: Callback for each ring that is about to be deleted.
        """
        self._directory = directory
        self._settings = settings
        self._one_shot = one_shot
        self._on_found = on_found
        self._on_gone = on_gone
        self._drains: dict[Path, RingDrainer] = {}
        self.unreadable: dict[Path, str] = {}
        self.left_at = time.monotonic()
        self._has_ended_cut = self._is_unsynced = False

    def __iter__(self) -> Iterator[RingDrainer]:
        return iter(self._drains.values())

    def __bool__(self) -> bool:
        return bool(self._drains)

    @property
    def flushing(self) -> bool:
        """Whether a process has requested a flush that is not complete."""
        return any(drain.flushing for drain in self)

    @property
    def has_finished_process(self) -> bool:
        """Whether a process has finished and may wait for delivery, or none is left."""
        return not self._drains or any(drain.ring.state is not State.OPEN for drain in self)

    @property
    def overflow(self) -> int:
        """Number of rows that found no room in their ring."""
        return sum(drain.ring.drops().get("ring_full", 0) for drain in self)

    @property
    def refusals(self) -> list[tuple[float, Exception]]:
        """Times since which the spool refuses rows, and its errors."""
        return [drain.refusal for drain in self if drain.refusal]

    @property
    def has_unread_rows(self) -> bool:
        """Whether a process has died and its rows are not all read."""
        return any(not drain.alive for drain in self)

    @property
    def living(self) -> set[str]:
        """Ids of the processes that live."""
        return {drain.ring.process for drain in self if drain.alive}

    def use(self, spool: Spool) -> None:
        """Go on with another spool, which contains everything of the processes that is not delivered, or is empty."""
        for drain in self:
            drain.use(spool)

    def forget(self) -> None:
        """Open all rings again: the next drains continue where a repaired spool ends."""
        self._drains.clear()

    def discover(self, spool: Spool, numbering: Numbering, *, sync: bool) -> None:
        """Open new rings. `sync`: whether to sync the run's description, which their processes have written again."""
        for path in self._directory.ring_files():
            if path in self._drains or path in self.unreadable:
                continue
            try:
                ring = RingFile.open(path)
                self._drains[path] = RingDrainer(ring, spool, self._settings.exporters, self._settings, numbering)
            except SpoolError:
                raise
            except Exception as error:  # whatever is wrong with it, the other processes must be delivered
                self._set_aside(spool, path, error)
                continue
            self._on_found(ring)
            if sync:
                self._sync_names()

    def drain(self, spool: Spool, working: Sequence[str], *, stopping: bool) -> bool:
        """Move the contents of the rings into the spool, and delete the rings of processes that have ended.

        Args:
            spool: The spool.
            working: Destinations to which delivery of log records works, for heartbeats.
            stopping: Whether to move everything at once.

        Returns:
            Whether requests have come into the spool.
        """
        is_fresh = False
        for path, drain in list(self._drains.items()):
            running = [other for other in self if not other.ended]
            try:
                is_gone = drain.advance(flush=stopping or self._one_shot, last=running == [drain])
            except SpoolDamagedError:
                raise
            except Exception as error:
                del self._drains[path]
                self._set_aside(spool, path, error)
                continue
            if is_gone:
                drain.note_end()
                self._on_gone(drain.ring)
                drain.ring.remove()
                del self._drains[path]
                self.left_at = time.monotonic()
            else:
                drain.beat(working, speaks=running[:1] == [drain])
            is_fresh = drain.take_fresh() or is_fresh
        return is_fresh

    def end_cut_processes(self, spool: Spool) -> list[str] | None:
        """End the processes that have no ring any more: once, and only if all rings can be read.

        Returns:
            Descriptions of how they were cut off; None if there was nothing to do.
        """
        if self._has_ended_cut or self.unreadable or self._directory.rings_weakness or self._directory.unread_rings:
            return None
        present = {drain.ring.process for drain in self}
        takers = self._settings.takers("logs", self._settings.exporters)
        if self._one_shot and not present and not spool.processes():
            descriptions = [describe_unknown(spool.losses())]
        else:
            synced = self._settings.durability != "none"
            descriptions = end_cut_processes(spool, present, takers, spool.losses(), synced=synced)
        self._has_ended_cut = True
        return descriptions

    def _set_aside(self, spool: Spool, path: Path, error: Exception) -> None:
        """Leave a ring that cannot be drained to the next agent. A permanently damaged ring counts as lost."""
        if isinstance(error, RingError):
            logger.error("%s", error)
        else:
            logger.error("cannot drain the ring %s", path, exc_info=error)
        lost = put_ring_aside(path, error)
        if not lost:
            self.unreadable[path] = str(error)
            return
        spool.count_loss("damaged", lost)
        logger.error("the ring %s is damaged, and kept; at least %d items in it count as lost (damaged)", path, lost)

    def _sync_names(self) -> None:
        """Sync what describes the run and the folders that lead to it, so that it is found after a power failure."""
        try:
            fsync_file(self._directory.path / "run.json")
            fsync_names(self._directory.path)
        except OSError as error:
            if not self._is_unsynced:
                logger.warning(
                    "cannot sync %s (%s): a power failure may delete the whole run", self._directory.path, error
                )
            self._is_unsynced = True
