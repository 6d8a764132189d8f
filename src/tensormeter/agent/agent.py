"""The agent, which drains and delivers one run on one node.

It runs as a separate process (`tensormeter.agent.__main__`) or, for notebooks and tests, on a thread. It finds the
run's rings, drains them into the spool and delivers from the spool. It ends when the run's last process is gone and
everything is delivered, or when the linger timeout expires. Undelivered data remains in the spool, for delivery by
`tensormeter sync`. The agent holds the run's agent lock from start to end.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from tensormeter.agent.attempts.alive_marks import AliveMarks
from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.delivery.deliveries import Deliveries
from tensormeter.agent.ingest.loss_reporter import LossReporter
from tensormeter.agent.ingest.rings import Rings
from tensormeter.agent.leftovers import Leftover, look_at
from tensormeter.agent.pauses import Pauses
from tensormeter.agent.pulse import Pulse
from tensormeter.agent.run_directory.agent_lock import AgentLock
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.spool.errors import SpoolDamagedError, SpoolFullError
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.spool.spool_location import (
    TROUBLE_DELAY,
    TROUBLE_LIMIT,
    RestoredError,
    SpoolLocation,
    disk_fails,
)
from tensormeter.agent.status import StatusPublisher
from tensormeter.errors import SettingsError, SpoolError, TensormeterError
from tensormeter.exporter import load_exporter
from tensormeter.logger import get_logger
from tensormeter.ring.file import RingFile
from tensormeter.settings import Settings
from tensormeter.standby import Standby

if TYPE_CHECKING:
    from tensormeter.agent.node_metrics import NodeMetrics

__all__ = ["Agent"]

logger: Final = get_logger("tensormeter.agent")

_MOST_REPAIRS: Final = 3

_LOCK_PAUSE: Final = 0.1
"""Seconds between two attempts to acquire the lock while a process that is not an agent holds it."""

_DURABLE_WAIT: Final = 5.0
"""Maximum seconds that a one-shot agent waits for accepted data to become durable. Receivers sync when asked."""

_LAST_DELIVERY: Final = 5.0
"""Seconds of the linger timeout that are left to deliver the events of code and artifacts that took too long to describe."""


class _MovedError(Exception):
    """The spool was moved between disk and memory and must be reopened."""


class Agent:
    """Worker that drains and delivers one run.

    `run` uses the calling thread, and starts threads for the pulse, the deliveries and the sensors.

    The attributes describe the result of `run`.

    Attributes:
        error: Reason for an incomplete delivery; empty if there is none.
        accepted: Whether receivers accepted everything, even if they have not yet stored all of it durably.
        cut: Descriptions of the run's processes that ended abruptly. Their last values may be missing.
        leftover: Data that the run leaves on this machine.
        unreachable: Destinations that could not be reached.
        ready: Event that is set once the agent's threads are running, or when `run` ends.
    """

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
            directory: Directory of the run.
            settings: Settings of the run.
            lock: File descriptors that hold the agent's lock, in the run's directory or in shared memory. `run` closes
                them when it ends. If there are none, `run` waits while a process that is not an agent holds the lock.
            one_shot: Whether to end without waiting for processes that are still running or for a receiver that keeps
                failing.
            on_status: Callback that periodically receives the number of undelivered items.
        """
        self._directory = directory
        self._settings = settings
        self._lock = AgentLock(directory, [lock] if isinstance(lock, int) else lock)
        self._one_shot = one_shot
        self._stopping = False
        self._retrying = False
        self._pulse: Pulse | None = None
        self._standby: Standby | None = None
        self._statistics: NodeMetrics | None = None
        self._rings = Rings(
            directory, settings, one_shot=one_shot, on_found=self._start_pulse, on_gone=self._stop_pulse
        )
        self._pauses = Pauses(directory, settings, self._rings)
        self._deliveries = Deliveries(settings, self._pauses.note_progress)
        self._location = SpoolLocation(
            directory,
            settings,
            self._lock,
            one_shot=one_shot,
            is_stopping=lambda: self._stopping,
            wait=self._pauses.wait,
        )
        self._status = StatusPublisher(self._rings, self._deliveries, on_status)
        self._losses = LossReporter(directory, settings)
        self._alive = AliveMarks(directory)
        self._overflow = 0
        """Value of `Rings.overflow` before the spool began to refuse writes."""
        self._accepted_at: float | None = None
        """Time at which all requests were first found to be accepted; None while requests are pending."""
        self.error = ""
        self.accepted = False
        self.cut: list[str] = []
        self.leftover = Leftover()
        self.unreachable: tuple[str, ...] = ()
        self.ready = threading.Event()

    def close_lock(self) -> None:
        """Close the lock's descriptors without running the agent.

        Call this if the agent's thread could not be started, or in a forked child, whose parent keeps the lock.
        """
        self._lock.close()

    def stop(self) -> None:
        """Move the contents of the rings into the spool in the next round, then end.

        Any thread or signal handler may call this.
        """
        self._stopping = True
        self._pauses.wake()

    def retry_now(self) -> None:
        """Retry delivery in the next round without any backoff. Any thread or signal handler may call this."""
        self._retrying = True
        self._pauses.wake()

    def run(self) -> bool:
        """Drain and deliver until there is nothing left to do.

        Returns:
            Whether everything was delivered. If not, `error` contains the reason.
        """
        try:
            return self._begin() and self._work()
        except (TensormeterError, OSError) as error:
            self.error = str(error)
            logger.error("%s", error)
            return False
        except Exception as error:  # the error is visible only in the log
            self.error = f"{type(error).__name__}: {error}"
            logger.exception("the agent failed")
            return False
        finally:
            self._end()
            self.ready.set()

    def become_agent(self, standby_state: tuple[int, int, int]) -> None:
        """Make this process the agent: keep a standby as its replacement, and write its process ID into the lock.

        Call this before `run`.

        Args:
            standby_state: State of the current standby, as for the argument `state` of `Standby`.
        """
        self._standby = Standby(os.fspath(self._directory.path), lambda: self._lock.descriptors, standby_state)
        self._lock.write(os.getpid())

    def _begin(self) -> bool:
        """Acquire the lock files that are not held yet, and start the pulse, which shows that an agent is running.

        A one-shot agent has no pulse, because it may end while processes are recording.

        Returns:
            False if another agent holds the lock.
        """
        if not self._one_shot and not os.path.lexists(self._directory.path):
            with contextlib.suppress(OSError), runs_locked(self._directory.path.parents[1]):
                self._directory.restore()
        if not (self._lock.complete() if self._lock.descriptors else self._await_lock()):
            self.error = "its agent is running"
            return False
        if not self._one_shot:
            self._pulse = Pulse(self._directory, self._standby.keep if self._standby else lambda: None)
            self._pulse.start()
        # Load exporters only after the first pulse: some take longer to load than processes wait for that pulse.
        self._numbering = Numbering(self._directory, self._settings, asks=_asks(self._settings))
        return True

    def _await_lock(self) -> bool:
        """Acquire the locks, and wait while a process that is not an agent holds them, such as `tensormeter sync`.

        Returns:
            False if an agent holds the lock, if this agent must stop, or if the run was delivered and removed.
        """
        while not self._stopping:
            try:
                is_held = self._lock.acquire()
            except FileNotFoundError:
                return False
            if is_held:
                self._lock.write(os.getpid() if self._standby else None)
                if self._lock.complete():
                    return True
                self._lock.release()  # the other process is about to release the lock in shared memory
            elif self._directory.is_held_by_agent():
                return False
            self._pauses.wait(_LOCK_PAUSE)
        return False

    def _end(self) -> None:
        """Stop the pulse, dismiss the standby and release the lock, so that another agent can start."""
        if self._pulse:
            self._pulse.stop()
        if self._standby:
            self._standby.dismiss()
        self._rings.close()
        self._pauses.close()
        self._lock.release()

    def _start_pulse(self, ring: RingFile) -> None:
        if self._pulse:
            self._pulse.add(ring)

    def _stop_pulse(self, ring: RingFile) -> None:
        if self._pulse:
            self._pulse.remove(ring)

    def _work(self) -> bool:
        """Run until done, and reopen the spool whenever it was repaired, restored or moved."""
        damage = ""
        repairs = 0
        while True:
            spool = self._location.open(damage)
            try:
                return self._work_with(spool)
            except _MovedError:
                damage = ""
            except SpoolDamagedError as error:
                repairs += 1
                if repairs > _MOST_REPAIRS:
                    raise
                damage = "" if isinstance(error, RestoredError) else str(error)
                logger.error("%s", error)
                self._rings.forget()
            finally:
                spool.close()

    def _work_with(self, spool: Spool) -> bool:
        self._rings.use(spool)
        try:
            self._withdraw_signals(spool)
            spool.forget_kept(self._settings.exporters)
            self._losses.prepare(spool)
        except SpoolDamagedError:
            raise
        except SpoolError as error:
            logger.error("%s", error)
        self._deliveries.start(spool, self._numbering)
        if self._settings.sample_interval and not self._one_shot:
            from tensormeter.agent.node_metrics import NodeMetrics

            self._statistics = NodeMetrics(spool, self._settings)
        if weakness := self._directory.rings_weakness:
            logger.warning("ignored the rings in %s: %s", self._directory.rings, weakness)
        self.ready.set()
        try:
            return self._loop(spool)
        finally:
            if self._statistics:
                self._statistics.stop()
            self._deliveries.stop()

    def _loop(self, spool: Spool) -> bool:
        trouble_since: float | None = None
        while True:
            is_over = False
            try:
                is_over = self._do_round(spool)
                trouble_since = None
                if is_over and (delivered := self._leave(spool)) is not None:
                    return delivered
            except (SpoolError, OSError) as error:
                # Errors from a failing disk can look like damage while the spool is open.
                if isinstance(error, SpoolDamagedError) and (
                    is_over or self._location.in_memory or not disk_fails(self._directory.path)
                ):
                    raise
                if is_over:
                    since = self._rings.left_at
                elif trouble_since is None:
                    since = trouble_since = time.monotonic()
                    logger.error("%s", error)
                else:
                    since = trouble_since
                if self._one_shot or self._stopping or time.monotonic() - since > TROUBLE_LIMIT:
                    raise
                if is_over:
                    logger.error("%s", error)
                self._move_if_refused(spool, (since, error))
                self._pauses.wait(TROUBLE_DELAY)
                continue
            refusals = [*self._rings.refusals, *self._deliveries.refusals]
            self._move_if_refused(spool, min(refusals, key=lambda refusal: refusal[0], default=None))
            self._pauses.rest(busy=bool(refusals) or self._is_busy())

    def _is_busy(self) -> bool:
        return self._one_shot or self._stopping or self._location.in_memory or not self._rings.are_settled

    def _move_if_refused(self, spool: Spool, refusal: tuple[float, Exception] | None) -> None:
        """Switch to a spool in memory if the disk has refused writes for too long. Switch back when it works again.

        Raises:
            _MovedError: The agent must continue with another spool.
        """
        if refusal is None:
            self._overflow = self._rings.overflow
        if self._location.in_memory:
            if self._location.try_disk():
                raise _MovedError
        elif refusal is not None and self._location.must_leave(refusal[0]):
            if isinstance(refusal[1], SpoolFullError) and self._location.is_full() and not self._is_urgent():
                return  # deliveries will free space
            self._deliveries.stop()
            if self._location.leave_disk(spool, refusal[1]):
                raise _MovedError
            self._deliveries.start(spool, self._numbering)

    def _is_urgent(self) -> bool:
        """Return whether rows are being lost because the spool refuses them, or a process is waiting for delivery."""
        return (
            self._stopping
            or self._rings.has_finished_process
            or self._rings.overflow > self._overflow
            or self._rings.flushing
        )

    def _withdraw_signals(self, spool: Spool) -> None:
        """Delete waiting requests whose signal is now excluded for their destination."""
        for destination in self._settings.exporters:
            for left_out in self._settings.excluded_signals(destination):
                items = spool.withdraw(destination, left_out.signal)
                if items:
                    logger.warning(
                        "%s: %d waiting items (%s) will not be sent, because %s",
                        destination,
                        items,
                        left_out.signal,
                        left_out.reason,
                    )

    def _do_round(self, spool: Spool) -> bool:
        """Run one round, and return whether the agent has nothing left to do."""
        self._deliveries.check()
        if self._retrying:
            self._retrying = False
            self._deliveries.wake()
        if not self._pauses.thorough:
            self._drain(spool)
            self._deliveries.wake_noted()
            return False
        self._location.restore_deleted(spool)
        self._location.keep_room(spool)
        self._discover(spool)
        self._end_cut_processes(spool)
        self._drain(spool)
        self._numbering.poll(unread=self._rings.has_unread_rows)
        if self._settings.run_id is not None:
            self._alive.write(self._rings.living)
        self._status.publish(spool, self._location.report)
        if self._standby:
            self._standby.worked()
        self._deliveries.wake_noted()  # at the end of the round, because deliveries slow it down
        return self._has_nothing_left(spool) and not self._report_losses(spool)

    def _discover(self, spool: Spool) -> None:
        self._rings.discover(spool, self._numbering, sync=not self._location.in_memory)

    def _end_cut_processes(self, spool: Spool) -> None:
        descriptions = self._rings.end_cut_processes(spool)
        if descriptions is None:
            return
        self.cut = descriptions
        self._deliveries.arrived()  # deliveries may have read the queue before it contained the end events
        for description in descriptions:
            logger.warning("%s: %s", self._directory.path.name, description)

    def _drain(self, spool: Spool) -> None:
        if self._statistics is not None:
            self._statistics.advance(list(self._rings), flush=self._stopping)
        self._pauses.follow_viewers(self._deliveries)
        self._rings.drain(spool, self._deliveries.working("logs"), stopping=self._stopping)
        self._deliveries.note_arrivals(spool.take_fresh())
        is_awaited = self._stopping or self._one_shot or self._rings.flushing or self._rings.has_finished_process
        self._pauses.set_awaited(is_awaited)
        self._deliveries.set_urgent(is_awaited)

    def _has_nothing_left(self, spool: Spool) -> bool:
        """Return whether the agent has nothing left to do."""
        if self._stopping:
            self._rings.stop_describing(spool, "the agent was stopped")
            return True
        if self._rings and not self._one_shot:
            return False
        linger_timeout = self._settings.linger_timeout
        if self._rings.is_describing:
            if time.monotonic() - self._rings.left_at > linger_timeout - min(_LAST_DELIVERY, linger_timeout / 2):
                self._rings.stop_describing(spool, "the agent ended before it was done")
                self._deliveries.arrived()
            return False
        if self._location.in_memory and time.monotonic() - self._rings.left_at < linger_timeout:
            return False  # wait until the disk works again and can store the spool or its progress
        if self._settings.mode == "offline":
            return True
        if spool.pending() == 0:
            return self._is_durable_or_in_vain(spool)
        self._accepted_at = None
        if self._one_shot:
            return self._deliveries.rest
        if self._deliveries.are_idle_or_parked and self._settings.token_file is None:
            return True  # this process cannot get a new token, but the next agent may have one
        return time.monotonic() - self._rings.left_at > linger_timeout

    def _is_durable_or_in_vain(self, spool: Spool) -> bool:
        """Return whether all accepted requests are durable, or waiting any longer is pointless."""
        if spool.kept() == 0:
            return True
        if self._accepted_at is None:
            self._accepted_at = time.monotonic()
        if self._one_shot:
            return self._deliveries.stalled or time.monotonic() - self._accepted_at > _DURABLE_WAIT
        return time.monotonic() - max(self._rings.left_at, self._accepted_at) > self._settings.linger_timeout

    def _report_losses(self, spool: Spool) -> bool:
        """Report losses that no event has reported, and return whether there is a report to deliver."""
        if self._stopping or self._rings or not self._losses.report(spool):
            return False
        self._deliveries.arrived()
        return True

    def _leave(self, spool: Spool) -> bool | None:
        """End, unless a new process of the run has just started.

        The check holds the lock that `init` takes while it creates a ring, so no process can start meanwhile.

        Returns:
            Whether everything was delivered; None if the agent must continue.
        """
        if self._location.in_memory:  # the run's directory and the spool in memory remain for the next agent
            self.error = self._location.report
            self._end()
            return False
        kept = spool.kept()
        self.accepted = spool.pending() == 0
        delivered = self.accepted and not kept
        if delivered:
            self._deliveries.stop()  # while holding the lock, this would make `init` wait for slow exporters
        with self._directory.siblings_locked():
            rings = [path for path in self._directory.ring_files() if path not in self._rings.unreadable]
            has_new_process = rings and not self._stopping and not self._one_shot
            if has_new_process or (delivered and spool.pending()):  # `spool retry` may have put requests back
                if delivered:
                    self._deliveries.start(spool, self._numbering)
                return None
            delivered = self._sum_up(spool, kept, delivered=delivered)
            if not rings:
                self._directory.remove_ring_directory()
            self.leftover = look_at(spool, {self._directory.rings, self._directory.rings_on_disk})
            has_rest = rings or self._rings.unreadable or self._directory.unread_rings
            if delivered and not has_rest and not self.leftover.keeps_folder:
                spool.close()
                try:
                    self._directory.remove()
                except OSError as error:
                    logger.error(
                        "everything was delivered, but %s could not be removed: %s", self._directory.path, error
                    )
            self._end()
            return delivered

    def _sum_up(self, spool: Spool, kept: int, *, delivered: bool) -> bool:
        """Set `error` and `unreachable`, and return whether everything was delivered, including the rings' contents."""
        self.unreachable = self._deliveries.unreachable
        if delivered and self._rings.unreadable:
            self.error = "; ".join(self._rings.unreadable.values())
            return False
        if not delivered:
            explanation = self._deliveries.trouble if self.accepted else ""
            self.error = (
                _describe_kept(kept, explanation)
                if self.accepted
                else self._deliveries.explain(spool, self._directory.path)
            )
        return delivered


def _describe_kept(kept: int, trouble: str) -> str:
    requests = "1 request was" if kept == 1 else f"{kept} requests were"
    why = f" ({trouble})" if trouble else ""
    return f"{requests} accepted, but the receiver has not confirmed durable storage{why}; the spool keeps a copy to resend after a loss"


def _asks(settings: Settings) -> bool:
    """Return whether any destination's exporter can ask its receiver for attempt numbers."""
    for destination in settings.exporters:
        with contextlib.suppress(SettingsError):
            if hasattr(load_exporter(destination), "ask_attempt"):
                return True
    return False
