"""A run's rings on this node, each with a drainer that moves its rows into the spool."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.background.items import Item, event_of
from tensormeter.agent.background.worker import Background
from tensormeter.agent.ingest.cut_processes import describe_unknown, end_cut_processes
from tensormeter.agent.ingest.damaged_rings import put_ring_aside
from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.agent.spool.encoding import encode_log_request
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.request import Priority
from tensormeter.agent.spool.spool import Spool
from tensormeter.disk.fsync import fsync_file, fsync_names
from tensormeter.errors import RingError, SpoolError
from tensormeter.logger import get_logger
from tensormeter.otlp.gauge_catalog import GaugeCatalog
from tensormeter.otlp.gauge_points import GaugeEncoder
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import HeaderWord, State
from tensormeter.settings import Settings

__all__ = ["Rings"]

logger: Final = get_logger("tensormeter.agent")


class Rings:
    """Collection of one run's rings. It finds, drains and deletes them. Only the agent's main thread may use it.

    Attributes:
        unreadable: Errors of unreadable rings that are left for the next agent, by path.
        left_at: Time at which the last process ended; before that, the time at which the agent started.
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
            one_shot: Whether to drain without waiting for processes that are still running.
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
        self._encoder = GaugeEncoder(GaugeCatalog())
        # A one-shot agent may run on another machine or for another user, so it reads no files that a run names.
        self._background = None if one_shot else Background()
        self._numbering: Numbering | None = None

    def __iter__(self) -> Iterator[RingDrainer]:
        return iter(self._drains.values())

    def __bool__(self) -> bool:
        return bool(self._drains)

    @property
    def flushing(self) -> bool:
        """Whether a process has requested a flush that is not yet complete."""
        return any(drain.flushing for drain in self)

    @property
    def has_finished_process(self) -> bool:
        """Whether a process has finished and may be waiting for delivery, or no process is left."""
        return not self._drains or any(drain.ring.state is not State.OPEN for drain in self)

    @property
    def overflow(self) -> int:
        """Number of points dropped because their ring was full."""
        return sum(drain.ring.drops().get("ring_full", 0) for drain in self)

    @property
    def refusals(self) -> list[tuple[float, Exception]]:
        """Current spool failures of the drainers, as (start time, error)."""
        return [drain.refusal for drain in self if drain.refusal]

    @property
    def has_unread_rows(self) -> bool:
        """Whether a process has died and its rows have not all been read."""
        return any(not drain.alive for drain in self)

    @property
    def living(self) -> set[str]:
        """IDs of the living processes."""
        return {drain.ring.process for drain in self if drain.alive}

    @property
    def are_settled(self) -> bool:
        """Whether all processes are running, and nothing but their next rows is to be moved into the spool."""
        return bool(self._drains) and all(drain.settled and drain.refusal is None for drain in self)

    def hurry(self, delay: float) -> None:
        """Wait for at most `delay` seconds between two batches of a process. This applies to its next batches."""
        for drain in self:
            drain.hurry(delay)

    def due_in(self) -> float:
        """Return the seconds until the next batch may be due; infinite if no rows are buffered."""
        return min((drain.due_in() for drain in self), default=math.inf)

    def has_due_rows(self) -> bool:
        """Return whether a process has written rows that would be a batch now. This only compares words in memory."""
        return any(drain.has_due_rows() for drain in self)

    def has_news(self) -> bool:
        """Return whether a process has written rows or media, or has ended, since the last `drain`."""
        has_results = self._background is not None and self._background.has_results
        return has_results or any(drain.has_news() for drain in self)

    def take_growth(self) -> float:
        """Return the largest share of a lane that was read since the last call."""
        return max((drain.take_growth() for drain in self), default=0.0)

    def set_sleeping(self, sleeping: bool) -> None:
        """Tell the processes whether to wake the agent when a lane fills up."""
        for drain in self:
            drain.ring.words[HeaderWord.AGENT_SLEEPS] = sleeping

    def use(self, spool: Spool) -> None:
        """Continue with another spool, which contains all undelivered data of the processes or is empty."""
        for drain in self:
            drain.use(spool)

    def forget(self) -> None:
        """Forget all rings, so that they are reopened and drained from the position in the repaired spool."""
        self._drains.clear()

    def discover(self, spool: Spool, numbering: Numbering, *, sync: bool) -> None:
        """Open new rings. If `sync` is true, also sync `run.json`, which the rings' processes have rewritten."""
        self._numbering = numbering
        for path in self._directory.ring_files():
            if path in self._drains or path in self.unreadable:
                continue
            try:
                ring = RingFile.open(path)
                self._drains[path] = RingDrainer(
                    ring, spool, self._settings.exporters, self._settings, numbering, self._encoder, self._background
                )
            except SpoolError:
                raise
            except Exception as error:  # whatever is wrong with this ring, the other rings must be drained
                self._set_aside(spool, path, error)
                continue
            self._on_found(ring)
            if sync:
                self._sync_names()

    def drain(self, spool: Spool, working: Sequence[str], *, stopping: bool) -> None:
        """Move the contents of the rings into the spool, and delete the rings of processes that have ended.

        Args:
            spool: Spool to write to.
            working: Destinations that currently accept log records; only these receive heartbeats.
            stopping: Whether to move all rows immediately.
        """
        self._put_ready_results(spool)
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

    @property
    def is_describing(self) -> bool:
        """Whether code or artifacts are still being described, or their events are not in the spool yet."""
        return self._background is not None and self._background.is_busy

    def stop_describing(self, spool: Spool, reason: str) -> None:
        """Put events into the spool for code and artifacts that are still being described, with the reason for what is missing.

        Raises:
            SpoolError: The spool cannot be written.
        """
        if self._background is not None:
            self._background.give_up(reason)
            self._put_results(spool)
            self._background = Background()  # for processes that join the run in this moment

    def close(self) -> None:
        """Stop the thread that describes code and artifacts."""
        if self._background is not None:
            self._background.stop()

    def _put_ready_results(self, spool: Spool) -> None:
        """Like `_put_results`, but events stay ready until the spool can be written, so that rows do not wait for them."""
        try:
            self._put_results(spool)
        except SpoolDamagedError:
            raise
        except SpoolError as error:
            logger.debug("descriptions of code and artifacts wait for the spool: %s", error)

    def _put_results(self, spool: Spool) -> None:
        """Put the events of code and artifacts that have been described into the spool.

        Raises:
            SpoolError: The spool cannot be written.
        """

        def put(item: Item, body: dict[str, Any]) -> None:
            event, resource = event_of(item, body), item.resource
            settled = self._numbering.of(resource) if self._numbering is not None else None
            if settled is not None:
                event, resource = settled.event(event), settled.resource(resource)
            started, ended = spool.lifecycle(item.process)
            takers = self._settings.takers("logs", self._settings.exporters)
            spool.put(
                [encode_log_request(resource, [event], Priority.MEDIA)],
                takers,
                item.process,
                {},
                started=started,
                ended=ended,
            )

        if self._background is not None:
            self._background.deliver(put)

    def end_cut_processes(self, spool: Spool) -> list[str] | None:
        """Store end events for processes that no longer have a ring, but only once, and only if all rings can be read.

        Returns:
            Descriptions of how the processes were cut off; None if there was nothing to do.
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
        """Leave a ring that cannot be drained to the next agent, or count it as lost if it is permanently damaged."""
        if isinstance(error, RingError):
            logger.error("%s", error)
        else:
            logger.error("cannot drain the ring %s", path, exc_info=error)
        lost = put_ring_aside(path, error)
        if not lost:
            self.unreadable[path] = str(error)
            return
        spool.count_loss("damaged", lost)
        logger.error(
            "the ring %s is damaged; the file was kept, and at least %d items in it count as lost (damaged)", path, lost
        )

    def _sync_names(self) -> None:
        """Sync the run's description and the folders on its path, so that the run survives a power failure."""
        try:
            fsync_file(self._directory.path / "run.json")
            fsync_names(self._directory.path)
        except OSError as error:
            if not self._is_unsynced:
                logger.warning(
                    "cannot sync %s (%s): a power failure may delete the whole run", self._directory.path, error
                )
            self._is_unsynced = True
