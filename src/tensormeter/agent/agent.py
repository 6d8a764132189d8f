"""The agent: one for each run and node, in a process of its own (or, for notebooks and tests, on a thread).

It finds the run's rings, drains them into the spool, delivers the spool, and ends when the last process of the run is gone
and everything is delivered, or has lingered long enough; what is left then stays in the spool for `tensormeter sync`.
It holds the run's agent lock from its start to its end.

Signals, as a process: SIGTERM and SIGINT make it put what the rings hold into the spool and end; SIGUSR1 makes it try
delivery again at once.
"""

import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from tensormeter.agent.attempts.counter import ALIVE_INTERVAL, mark_alive
from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.delivery.delivery import Delivery, deliveries
from tensormeter.agent.ingest.cut_processes import describe_unknown, end_cut_processes
from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.agent.launch import agent_command
from tensormeter.agent.leftovers import Leftover, describe_rejections, look_at, put_ring_aside
from tensormeter.agent.pulse import Pulse
from tensormeter.agent.run_directory.agent_lock import AgentLock
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.spool.errors import SpoolDamagedError, SpoolFullError, SpoolVersionError
from tensormeter.agent.spool.loss_report import Report, anonymous, described_in, due, encode_report
from tensormeter.agent.spool.memory_spool import Refuge, works
from tensormeter.agent.spool.recovery import open_repaired
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.standby import Standby
from tensormeter.disk.fsync import fsync_file, fsync_names
from tensormeter.disk.private import open_file
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import RingError, SettingsError, SpoolError, TensormeterError
from tensormeter.exporter import load_exporter
from tensormeter.logger import get_logger
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import HeaderWord, SpoolLoss, State
from tensormeter.settings import IDENTIFIER, Settings

if TYPE_CHECKING:
    from tensormeter.agent.node_metrics import NodeMetrics

__all__ = ["Agent"]

logger: Final = get_logger("tensormeter.agent")

_POLL: Final = 0.05
"""Seconds between two looks at the rings: a lane of 8 MiB takes 140 ms to fill at a million rows a second."""

_NICE: Final = 5
_STATUS_INTERVAL: Final = 0.25
_STOP_DELIVERY: Final = 15.0
_TROUBLE_DELAY: Final = 1.0
_MOST_REPAIRS: Final = 3

_DISK_PATIENCE: Final = 2.0
"""Seconds for which the disk may refuse before the agent goes on in memory."""

_REFUGE_DELAY: Final = 30.0
"""Seconds after which the agent tries to go into memory again, if there was no room."""

_FIRST_DISK_TRIAL: Final = 3.0
_LONGEST_DISK_TRIAL: Final = 60.0
"""Seconds between two looks at whether the disk works again, which double each time that it fails again."""

_RESERVE_DELAY: Final = 5.0
_DURABLE_WAIT: Final = 5.0
"""Seconds for which a one-shot agent waits for a receiver's disk: asked, it syncs at once."""
_MOST_REPORTS: Final = 3
"""Reports of losses that one agent adds at its end: delivering one may itself lose something."""

_NEXT_TO_NOTHING: Final = 1 << 20
"""Bytes that are free on a disk that counts as full, at most."""

_LACKS: Final = {
    "fsync": "fsync, so what is kept there may not survive a power failure",
    "maps": "shared memory maps, so the spool there is slower",
}
_TROUBLE_LIMIT: Final = 300.0
"""Seconds for which the spool may refuse before the agent gives up; the next one may find a mended disk."""


class _RestoredError(SpoolDamagedError):
    """The spool was deleted, and is there again."""


class _MovedError(Exception):
    """The agent goes on with a spool in another place."""


class Agent:
    """Drains and delivers one run. `run` does it all, on the calling thread and one for each destination."""

    def __init__(
        self,
        directory: RunDirectory,
        settings: Settings,
        lock: int | Sequence[int],
        *,
        one_shot: bool = False,
        on_status: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            directory: The run's directory.
            settings: The run's settings.
            lock: Descriptors that hold the agent's lock, in the run's directory or in shared memory; closed when `run` ends.
            one_shot: Do not wait for processes that still run, nor for a receiver that keeps failing.
            on_status: Called now and then with the number of items that are not delivered yet.
        """
        self._directory = directory
        self._settings = settings
        self._lock = AgentLock(directory, [lock] if isinstance(lock, int) else lock)
        self._pulse: Pulse | None = None
        self._standby: Standby | None = None
        self._one_shot = one_shot
        self._on_status = on_status
        self._wake = threading.Event()  # never set by a signal handler: the thread below it may be inside of it
        self._stopping = False
        self._retrying = False
        self._drains: dict[Path, RingDrainer] = {}
        self._unreadable: dict[Path, str] = {}
        self._deliveries: list[Delivery] = []
        self._living: set[str] = set()
        self._marked_at = 0.0
        self._statistics: NodeMetrics | None = None
        self._left_at = time.monotonic()
        self._status_at = 0.0
        self._reserve_at = 0.0
        self._refusals = 0, ""
        self._no_exporters: dict[str, str] = {}
        """Destinations that have no exporter, and what is wrong."""
        self._reports = 0
        self._spare_report: Report | None = None
        self._refuge = Refuge(directory)
        self._away = False
        """Whether the spool is in memory, because the disk fails."""
        self._refuge_at = 0.0
        """Until when it makes no sense to go into memory."""
        self._returning = False
        """Whether the disk is to be used again."""
        self._disk_report = ""
        self._overflowed = 0
        """What `_ring_full` was before the spool began to refuse."""
        self._disk_trial_at = 0.0
        self._disk_trial_delay = _FIRST_DISK_TRIAL
        self.error = ""
        """Why something is still not delivered, after `run`."""
        self.accepted = False
        """Whether everything was accepted though not all of it is known to be on the receivers' disks, after `run`."""
        self.cut: list[str] = []
        """How processes of the run were cut off, so that their last values may be missing."""
        self._looked_for_cut = self._unsynced = False
        self._sent_at: float | None = None
        """When everything had been accepted."""

        self.leftover = Leftover()
        """What was left, after `run`."""
        self.unreachable: tuple[str, ...] = ()
        """Destinations that could not be reached, after `run`."""

    def close_lock(self) -> None:
        """Let go of the descriptor, for an agent that does not run: one whose thread could not be started, and in a forked
        child its parent's, which keeps the lock.
        """
        self._lock.close()

    def stop(self) -> None:
        """Put what the rings hold into the spool, and end, from the next look on. Any thread, and signal handlers."""
        self._stopping = True

    def retry_now(self) -> None:
        """Try delivery again without waiting for the backoff, from the next look on. Any thread, and signal handlers."""
        self._retrying = True

    def run(self) -> bool:
        """Work until there is nothing left to do.

        Returns:
            Whether everything was delivered. If not, `error` says why.
        """
        try:
            if not self._begin():
                return False
            damage = ""
            repairs = 0
            while True:
                spool = self._open_spool(damage)
                try:
                    return self._work(spool)
                except _MovedError:
                    damage = ""
                except SpoolDamagedError as error:
                    repairs += 1
                    if repairs > _MOST_REPAIRS:
                        raise
                    damage = "" if isinstance(error, _RestoredError) else str(error)
                    logger.error("%s", error)
                    self._drains.clear()  # the next ones ask the repaired spool where to go on
                finally:
                    spool.close()
        except (TensormeterError, OSError) as error:
            self.error = str(error)
            logger.error("%s", error)
            return False
        except Exception as error:  # the log is all that anybody will ever see of it
            self.error = f"{type(error).__name__}: {error}"
            logger.exception("the agent failed")
            return False
        finally:
            self._end()

    def be_process(self, begun: tuple[int, int, int]) -> None:
        """Let this process be the agent: keep another one ready to take its place, and write its id into the lock. Before `run`.

        Args:
            begun: As for `Standby`.
        """
        path = self._directory.path
        self._standby = Standby(os.fspath(path), agent_command(path), lambda: self._lock.descriptors, begun)
        self._lock.write(os.getpid())

    def _begin(self) -> bool:
        """Take what is left to take of the lock, and let the run's processes see that they have an agent.

        Returns:
            False if there is another agent.
        """
        if not self._one_shot and not os.path.lexists(self._directory.path):
            with contextlib.suppress(OSError), runs_locked(self._directory.path.parents[1]):
                self._directory.restore()
        if not self._lock.complete():
            self.error = "its agent is at work"
            return False
        self._pulse = Pulse(self._directory, self._standby.keep if self._standby else lambda: None)
        self._pulse.start()
        # Exporters are loaded once the pulse says that there is an agent: some take longer than a new agent is given.
        self._numbering = Numbering(self._directory, self._settings, asks=_asks(self._settings))
        return True

    def _end(self) -> None:
        """Let another agent come."""
        if self._pulse:
            self._pulse.stop()
        if self._standby:
            self._standby.dismiss()
        self._lock.release()

    def _open_spool(self, damage: str) -> Spool:
        """The spool on the disk, or, if the disk refuses, the one in memory. `damage`: as for `open_repaired`."""
        settings = self._settings
        began = time.monotonic()
        while True:
            if self._away and not self._returning:
                with contextlib.suppress(OSError, SpoolError):
                    return self._refuge.open(None, settings.spool_max_bytes)
            try:
                spool = open_repaired(
                    self._directory.spool,
                    settings.exporters,
                    durability=settings.durability,
                    max_bytes=settings.spool_max_bytes,
                    damage=damage,
                )
                try:
                    self._refuge.give_back(spool)
                except BaseException:
                    spool.close()
                    raise
                self._returned(spool)
                return spool
            except (SpoolDamagedError, SpoolVersionError):
                raise
            except (SpoolError, OSError) as error:
                if not self._one_shot and time.monotonic() > max(began + _DISK_PATIENCE, self._refuge_at):
                    self._leave_disk(None, error)
                    if self._away:
                        continue
                if self._one_shot or self._stopping or time.monotonic() - began > _TROUBLE_LIMIT:
                    raise
                if str(error) != self.error:
                    logger.error("%s", error)
                    self.error = str(error)
                self._wake.wait(_TROUBLE_DELAY)

    def _leave_disk(self, spool: Spool | None, error: Exception) -> None:
        """Go on in memory.

        Args:
            spool: The spool on the disk, if it is open.
            error: What the disk said.
        """
        self._stop_deliveries()
        try:
            self._refuge.open(spool, self._settings.spool_max_bytes).close()
        except (OSError, SpoolError) as failure:
            logger.error("%s; and nothing can be kept in memory: %s", error, failure)
            self._refuge_at = time.monotonic() + _REFUGE_DELAY
            return
        self._away, self._returning = True, False
        self._disk_trial_at = time.monotonic() + self._disk_trial_delay
        self._disk_trial_delay = min(2 * self._disk_trial_delay, _LONGEST_DISK_TRIAL)
        self._disk_report = f"{self._directory.path} cannot be used ({error}); the run goes on in memory, and returns to the disk when that works"
        logger.error("%s", self._disk_report)

    def _returned(self, spool: Spool) -> None:
        """The disk is in use, from the start or again."""
        if self._away:
            self._away = self._returning = False
            self._disk_report = f"{self._directory.path} can be used again; the run is kept on the disk"
            logger.warning("%s", self._disk_report)
        elif spool.missing and not self._disk_report:
            lacks = " and ".join(_LACKS[feature] for feature in sorted(spool.missing))
            self._disk_report = f"the file system of {self._directory.path} has no {lacks}"
            logger.warning("%s", self._disk_report)

    def _try_disk(self) -> None:
        """Go back to the disk, if it works.

        Raises:
            _MovedError: It does.
        """
        now = time.monotonic()
        if now < self._disk_trial_at:
            return
        self._disk_trial_at = now + self._disk_trial_delay
        try:
            if _is_deleted(self._directory.path):
                with runs_locked(self._directory.path.parents[1]):
                    self._directory.restore()
        except OSError:
            return
        if works(self._directory.spool):
            if not self._lock.complete():
                raise SpoolError(f"{self._directory.path} has another agent now")
            self._stop_deliveries()
            self._returning = True
            raise _MovedError

    def _refused_since(self) -> tuple[float, Exception] | None:
        """When the spool began to refuse what it has refused ever since, and what it said."""
        refusals = [drain.refusal for drain in self._drains.values() if drain.refusal]
        refusals += [delivery.refusal for delivery in self._deliveries if delivery.refusal]
        return min(refusals, key=lambda refusal: refusal[0], default=None)

    def _work(self, spool: Spool) -> bool:
        settings = self._settings
        for drain in self._drains.values():
            drain.use(spool)
        try:
            self._leave_signals_out(spool)
            spool.forget_kept(settings.exporters)
            self._spare_report = self._report_of_nobody(spool)
        except SpoolDamagedError:
            raise
        except SpoolError as error:
            logger.error("%s", error)
        self._start_deliveries(spool)
        if settings.sample_interval and not self._one_shot:
            from tensormeter.agent.node_metrics import NodeMetrics

            self._statistics = NodeMetrics(spool, settings)
        if weak := self._directory.rings_weakness:
            logger.warning("rings in %s are left alone: %s", self._directory.rings, weak)
        try:
            trouble_since: float | None = None
            while True:
                try:
                    is_over = self._look(spool)
                    trouble_since = None
                except (SpoolError, OSError) as error:
                    # To whoever has a spool open, a disk that fails may look like damage.
                    if isinstance(error, SpoolDamagedError) and (self._away or not _fails(self._directory.path)):
                        raise
                    if trouble_since is None:
                        trouble_since = time.monotonic()
                        logger.error("%s", error)
                    if self._one_shot or self._stopping or time.monotonic() - trouble_since > _TROUBLE_LIMIT:
                        raise
                    self._move_if_refused(spool, (trouble_since, error))
                    self._wake.wait(_TROUBLE_DELAY)
                    continue
                if is_over:
                    try:
                        delivered = self._leave(spool)
                    except SpoolDamagedError:
                        raise
                    except (SpoolError, OSError) as error:
                        if self._one_shot or self._stopping or time.monotonic() - self._left_at > _TROUBLE_LIMIT:
                            raise
                        logger.error("%s", error)
                        self._move_if_refused(spool, (self._left_at, error))
                        self._wake.wait(_TROUBLE_DELAY)
                        continue
                    if delivered is not None:
                        return delivered
                self._move_if_refused(spool, self._refused_since())
                self._wake.wait(_POLL)
                self._wake.clear()
        finally:
            if self._statistics:
                self._statistics.stop()
            self._stop_deliveries()

    def _move_if_refused(self, spool: Spool, refusal: tuple[float, Exception] | None) -> None:
        """Go on in memory if the disk has refused for too long, and back when it works.

        Raises:
            _MovedError: The agent has to go on with another spool.
        """
        if refusal is None:
            self._overflowed = self._ring_full()
        if self._away:
            self._try_disk()
        elif (
            refusal is not None
            and not self._one_shot
            and time.monotonic() > max(refusal[0] + _DISK_PATIENCE, self._refuge_at)
        ):
            if isinstance(refusal[1], SpoolFullError) and self._is_full() and not self._is_urgent():
                return  # what is delivered makes room
            self._leave_disk(spool, refusal[1])
            if self._away:
                raise _MovedError
            self._start_deliveries(spool)

    def _is_urgent(self) -> bool:
        """Whether rows are lost because the spool does not take them, or a process waits for them."""
        return (
            self._stopping
            or self._somebody_has_finished()
            or self._ring_full() > self._overflowed
            or any(drain.flushing for drain in self._drains.values())
        )

    def _ring_full(self) -> int:
        """Rows that found no room in their ring."""
        return sum(drain.ring.drops().get("ring_full", 0) for drain in self._drains.values())

    def _is_full(self) -> bool:
        """Whether the disk has next to no room."""
        try:
            return shutil.disk_usage(self._directory.path).free < _NEXT_TO_NOTHING
        except OSError:
            return False

    def _leave_signals_out(self, spool: Spool) -> None:
        """Give up what waits of signals that destinations are no longer sent."""
        for destination in self._settings.exporters:
            for left in self._settings.signals_left_out(destination):
                items = spool.withdraw(destination, left.signal)
                if items:
                    logger.warning(
                        "%s: %d items of %s that waited are not sent, because %s",
                        destination,
                        items,
                        left.signal,
                        left.reason,
                    )

    def _start_deliveries(self, spool: Spool) -> None:
        settings = self._settings
        if settings.mode == "online":
            self._deliveries = []
            for destination in settings.exporters:
                try:
                    self._deliveries += deliveries(
                        (destination,), spool.path, settings, self._wake.set, self._numbering
                    )
                except SettingsError as error:  # there is no such exporter here; the others go on
                    logger.error("%s", error)
                    self._no_exporters[destination] = str(error)
            for delivery in self._deliveries:
                delivery.start()

    def _stop_deliveries(self) -> None:
        for delivery in self._deliveries:
            delivery.stop(_STOP_DELIVERY)

    def _look(self, spool: Spool) -> bool:
        """One round. Returns whether there is no reason to go on."""
        for delivery in self._deliveries:
            if delivery.damaged:
                raise SpoolDamagedError(delivery.error)
        if self._retrying:
            self._retrying = False
            for delivery in self._deliveries:
                delivery.wake()
        if not self._away and _is_deleted(self._directory.spool):
            self._restore(spool)
        self._keep_room(spool)
        self._discover(spool)
        self._end_cut(spool)
        self._drain(spool)
        self._numbering.look(unread=any(not drain.alive for drain in self._drains.values()))
        self._mark_alive()
        self._report(spool)
        if self._standby:
            self._standby.worked()
        return self._nothing_left(spool) and not self._report_losses(spool)

    def _report_of_nobody(self, spool: Spool) -> Report | None:
        """An empty report, for a spool that does not know the run's processes any more; None if nothing says which run it is."""
        if spool.reports():
            return None
        run = self._directory.run
        project = run["settings"].get("project")
        valid = isinstance(project, str) and IDENTIFIER.fullmatch(project)
        if self._directory.damage or not valid:  # what a request says has a checksum that matches
            request = spool.oldest()
            described = None if request is None else described_in(request, run["host"])
            if described is not None or not valid:
                return described
        return anonymous(project, run["run_id"], str(run.get("name", run["run_id"])), run["host"])

    def _report_losses(self, spool: Spool) -> bool:
        """Report what the spool has lost to all destinations, if their last event does not say it. Returns whether it was news.

        The event that ended the last process was encoded when the process ended; more may be lost since.
        """
        if self._stopping or self._settings.mode == "offline" or self._drains or self._reports == _MOST_REPORTS:
            return False
        reports = spool.reports() or ([self._spare_report] if self._spare_report else [])
        report = due(reports, spool.losses()) if reports else None
        if report is None:
            return False
        self._reports += 1
        started, ended = spool.life(report.process)
        takers = self._settings.takers("logs", self._settings.exporters)
        spool.put([encode_report(report)], takers, report.process, {}, started=started, ended=ended, report=report)
        for delivery in self._deliveries:
            delivery.arrived()
        return True

    def _restore(self, spool: Spool) -> NoReturn:
        """The run's directory was deleted, at least in part. The spool is still open here: put it back.

        Raises:
            _RestoredError: So that it is opened again from where it is now.
            SpoolError: There is no way to put it back.
        """
        try:
            with runs_locked(self._directory.path.parents[1]):
                self._directory.restore()
                if not self._lock.complete():
                    raise SpoolError(f"{self._directory.path} was deleted, and has another agent now")
                spool.save_to(self._directory.spool)
        except OSError as error:
            raise SpoolError(f"{self._directory.path} was deleted, and cannot be made again: {error}") from error
        raise _RestoredError(f"{self._directory.path} was deleted; it is there again, with what was in the spool")

    def _keep_room(self, spool: Spool) -> None:
        now = time.monotonic()
        if now >= self._reserve_at and not spool.keep_room():
            self._reserve_at = now + _RESERVE_DELAY

    def _discover(self, spool: Spool) -> None:
        for path in self._directory.ring_files():
            if path in self._drains or path in self._unreadable:
                continue
            try:
                ring = RingFile.open(path)
                self._drains[path] = RingDrainer(ring, spool, self._settings.exporters, self._settings, self._numbering)
            except SpoolError:
                raise
            except Exception as error:  # of whatever kind, it must not keep the other processes from being delivered
                self._set_aside(spool, path, error)
                continue
            if self._pulse:
                self._pulse.add(ring)
            if not self._away:
                self._sync_names()  # the process has written run.json again

    def _sync_names(self) -> None:
        """See that the run is found after a loss of power: what describes it, and the folders that lead to it."""
        try:
            fsync_file(self._directory.path / "run.json")
            fsync_names(self._directory.path)
        except OSError as error:
            if not self._unsynced:
                logger.warning(
                    "%s cannot be synced (%s): a loss of power may cost all of it", self._directory.path, error
                )
            self._unsynced = True

    def _end_cut(self, spool: Spool) -> None:
        """Once, and if all rings can be read: end the processes that have none any more."""
        if self._looked_for_cut:
            return
        if self._unreadable or self._directory.rings_weakness or self._directory.unread_rings:
            return
        present = {drain.ring.process for drain in self._drains.values()}
        takers = self._settings.takers("logs", self._settings.exporters)
        if self._one_shot and not present and not spool.processes():
            self.cut = [describe_unknown(spool.losses())]
        else:
            synced = self._settings.durability != "none"
            self.cut = end_cut_processes(spool, present, takers, spool.losses(), synced=synced)
        for delivery in self._deliveries:
            delivery.arrived()  # it may have looked before the ends were there
        for words in self.cut:
            logger.warning("%s: %s", self._directory.path.name, words)
        self._looked_for_cut = True

    def _mark_alive(self) -> None:
        """Say to other hosts that share the directory which processes live here."""
        if self._settings.run_id is None:
            return
        living = {drain.ring.process for drain in self._drains.values() if drain.alive}
        now = time.monotonic()
        if living != self._living:
            with contextlib.suppress(OSError), self._directory.siblings_locked():
                mark_alive(self._directory, sorted(living))
                self._living, self._marked_at = living, now
        elif living and now - self._marked_at >= ALIVE_INTERVAL:
            mark_alive(self._directory, None)
            self._marked_at = now

    def _drain(self, spool: Spool) -> None:
        fresh = self._statistics is not None and self._statistics.advance(self._drains.values(), flush=self._stopping)
        for path, drain in list(self._drains.items()):
            left = [one for one in self._drains.values() if not one.ended]
            try:
                gone = drain.advance(flush=self._stopping or self._one_shot, last=left == [drain])
            except SpoolDamagedError:
                raise
            except Exception as error:
                del self._drains[path]
                self._set_aside(spool, path, error)
                continue
            if gone:
                drain.note_end()
                if self._pulse:
                    self._pulse.remove(drain.ring)
                drain.ring.remove()
                del self._drains[path]
                self._left_at = time.monotonic()
            else:
                working = [
                    delivery.destination
                    for delivery in self._deliveries
                    if not delivery.failures and "logs" in delivery.signals
                ]
                drain.beat(working, speaks=left[:1] == [drain])
            fresh = drain.take_fresh() or fresh
        flushing = any(drain.flushing for drain in self._drains.values())
        urgent = self._stopping or self._one_shot or flushing or self._somebody_has_finished()
        for delivery in self._deliveries:
            delivery.set_urgent(urgent)
            if fresh:
                delivery.arrived()

    def _somebody_has_finished(self) -> bool:
        """Whether a process may be waiting for delivery, or nobody is left who brings more."""
        return not self._drains or any(drain.ring.state is not State.OPEN for drain in self._drains.values())

    def _set_aside(self, spool: Spool, path: Path, error: Exception) -> None:
        """Leave a ring that cannot be drained to the next agent; one that is damaged for good counts as lost."""
        if isinstance(error, RingError):
            logger.error("%s", error)
        else:
            logger.error("the ring %s cannot be drained", path, exc_info=error)
        lost = put_ring_aside(path, error)
        if not lost:
            self._unreadable[path] = str(error)
            return
        spool.count_loss("damaged", lost)
        logger.error("the ring %s is damaged, and kept; at least %d items in it count as lost (damaged)", path, lost)

    def _report(self, spool: Spool) -> None:
        pending = spool.pending()
        # A flush is about metrics first: it does not fail because a receiver of metrics alone takes no log records.
        fails = any(delivery.failures and delivery.signals == ("logs",) for delivery in self._deliveries)
        signals: tuple[Signal, ...] = ("metrics",) if fails else SIGNALS
        flushed = {
            drain: number for drain in self._drains.values() if (number := drain.complete_flush(signals)) is not None
        }
        rejected = spool.quarantined_items()  # read after those, published before: nobody sees 0 pending without it
        losses = spool.losses()
        stalled = self._stalled() or 0 < pending == spool.elsewhere
        trouble = self._trouble()
        refused = [f"{delivery} refused {delivery.refused}" for delivery in self._deliveries if delivery.refused]
        if rejected != self._refusals[0]:
            self._refusals = rejected, describe_rejections(spool.rejections())
        for drain in self._drains.values():
            drain.ring.words[HeaderWord.QUARANTINED_ITEMS] = rejected
            for reason in SpoolLoss:
                drain.ring.words[HeaderWord.SPOOL_LOSSES + reason] = losses.get(reason.name.lower(), 0)
            drain.ring.report(trouble, self._refusals[1], "; ".join(filter(None, [drain.lost, *refused])))
            drain.ring.report_disk(self._disk_report)
            drain.ring.words[HeaderWord.STALLED] = stalled
            drain.ring.words[HeaderWord.PENDING_REQUESTS] = pending
            if drain in flushed:
                drain.ring.words[HeaderWord.FLUSHED] = flushed[drain]
        now = time.monotonic()
        if self._on_status and now - self._status_at >= _STATUS_INTERVAL:
            self._status_at = now
            self._on_status(spool.pending_items())

    def _stalled(self) -> bool:
        """Whether it makes no sense to wait: what is not delivered is for destinations that cannot be reached."""
        return any(delivery.stalled or delivery.hangs for delivery in self._deliveries) and self._all_rest()

    def _all_rest(self) -> bool:
        """Whether each delivery has nothing to do, or nothing that can be done now."""
        return all(delivery.idle or delivery.stalled or delivery.hangs for delivery in self._deliveries)

    def _trouble(self) -> str:
        found = [f"{delivery}: {delivery.trouble}" for delivery in self._deliveries if delivery.trouble]
        return "; ".join([*found, *(f"{name}: {reason}" for name, reason in self._no_exporters.items())])

    def _explain(self, spool: Spool) -> str:
        """Why something waits, for each destination."""
        waiting = spool.waiting_items()
        words = []
        for name, items in waiting.items():
            reasons = [
                delivery.trouble for delivery in self._deliveries if delivery.destination == name and delivery.trouble
            ]
            reason = "; ".join(dict.fromkeys(reasons)) or self._no_exporters.get(name, "")
            if name not in self._settings.exporters:
                path = self._directory.path
                reason = (
                    f"the run's last settings do not name it; `TENSORMETER_EXPORTERS={name} tensormeter sync {path}` sends it, with "
                    f"options from the environment; `tensormeter spool purge {path.name}` deletes it"
                )
            words.append(f"{name}: {reason or 'not delivered yet'} ({items} items wait)")
        return "; ".join(words) or self._trouble()

    def _nothing_left(self, spool: Spool) -> bool:
        """Whether there is no reason to go on."""
        if self._stopping:
            return True
        if self._drains and not self._one_shot:
            return False
        if self._away and time.monotonic() - self._left_at < self._settings.linger_timeout:
            return False  # what is in memory goes back to the disk, or is known there to be delivered
        if self._settings.mode == "offline":
            return True
        if spool.pending() == 0:
            return self._durable_or_in_vain(spool)
        self._sent_at = None
        if self._one_shot:
            return self._all_rest()
        if all(delivery.parked or delivery.idle for delivery in self._deliveries) and self._settings.token_file is None:
            return True  # this process will not see another token, and the next agent may have one
        return time.monotonic() - self._left_at > self._settings.linger_timeout

    def _durable_or_in_vain(self, spool: Spool) -> bool:
        """Whether everything that is accepted is durable, or it makes no sense to wait for that."""
        if spool.kept() == 0:
            return True
        if self._sent_at is None:
            self._sent_at = time.monotonic()
        if self._one_shot:
            return self._stalled() or time.monotonic() - self._sent_at > _DURABLE_WAIT
        return time.monotonic() - max(self._left_at, self._sent_at) > self._settings.linger_timeout

    def _leave(self, spool: Spool) -> bool | None:
        """End, unless a new process of the run has just come: `init` and we look at each other under the same lock.

        Returns:
            Whether everything was delivered; None to stay.
        """
        if self._away:  # the run's directory stays, and what is in memory, for the next agent
            self.error = self._disk_report
            self._end()
            return False
        kept = spool.kept()
        self.accepted = spool.pending() == 0
        delivered = self.accepted and not kept
        if delivered:
            self._stop_deliveries()  # before the lock is held: an exporter may take long to shut down, and `init` would wait
        with self._directory.siblings_locked():
            rings = [path for path in self._directory.ring_files() if path not in self._unreadable]
            came = rings and not self._stopping and not self._one_shot
            if came or (delivered and spool.pending()):  # `spool retry` may have put something back meanwhile
                if delivered:
                    self._start_deliveries(spool)
                return None
            self.unreachable = tuple(
                delivery.destination for delivery in self._deliveries if delivery.stalled and not delivery.parked
            )
            if not delivered:
                self.error = _describe_kept(kept, self._trouble()) if self.accepted else self._explain(spool)
            elif self._unreadable:
                delivered = False
                self.error = "; ".join(self._unreadable.values())
            if not rings:
                self._directory.remove_ring_directory()
            self.leftover = look_at(spool, {self._directory.rings, self._directory.rings_on_disk})
            left = self._unreadable or self._directory.unread_rings
            if delivered and not rings and not left and not self.leftover.keeps_folder:
                spool.close()
                try:
                    self._directory.remove()
                except OSError as error:
                    logger.error("everything is delivered, but %s cannot be removed: %s", self._directory.path, error)
            self._end()
            return delivered


def _is_deleted(path: Path) -> bool:
    """Whether there is no such folder; False if the disk does not say."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _fails(folder: Path) -> bool:
    """Whether the disk of a folder refuses to keep a small file for a moment."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"trial")
            file.flush()
            file.seek(0)
            return file.read() != b"trial"
    except OSError:
        return True


def _describe_kept(kept: int, trouble: str) -> str:
    requests = "1 request is" if kept == 1 else f"{kept} requests are"
    why = f" ({trouble})" if trouble else ""
    return f"{requests} accepted, but the receiver does not say that its disk has them{why}; they are kept, to be sent again if it loses them"


def _asks(settings: Settings) -> bool:
    """Whether a destination may know the attempts at the run."""
    if settings.run_id is None:
        return False
    for destination in settings.exporters:
        with contextlib.suppress(SettingsError):
            if hasattr(load_exporter(destination), "ask_attempt"):
                return True
    return False


def main(arguments: list[str]) -> int:
    """``python -m tensormeter.agent.agent RUN_DIRECTORY LOCKS DEATHS STANDBY NOTICE``, with the run and its settings as JSON on
    the standard input. LOCKS: descriptors that hold the lock, separated by commas. The rest is for `Standby`.
    """
    locks = [int(descriptor) for descriptor in arguments[1].split(",")]
    for lock in locks:
        os.set_inheritable(lock, False)
    _allow_open_files()
    description = json.load(open(0, "rb", closefd=False))  # noqa: SIM115 - the next agent reads it again
    directory = RunDirectory.from_json(description["directory"])
    _open_log(directory)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    agent = Agent(directory, Settings.from_json(description["settings"]), locks)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    signal.signal(signal.SIGUSR1, lambda *_: agent.retry_now())
    # Only a process that handles these signals may be sent them.
    deaths, standby, notice = map(int, arguments[2:5])
    os.set_inheritable(notice, False)
    agent.be_process((deaths, standby, notice))
    with contextlib.suppress(OSError):
        os.nice(max(0, _NICE - os.nice(0)))  # the training process comes first
    return 0 if agent.run() else 1


def _allow_open_files() -> None:
    """Raise this process's own limit on open files as far as it may be: the training process may have a low one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _open_log(directory: RunDirectory) -> None:
    """Let the output go to the log in the run's directory, unless it does so already or the disk refuses."""
    if not os.path.samestat(os.fstat(1), os.stat(os.devnull)):
        return
    with contextlib.suppress(OSError):
        log = open_file(directory.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
