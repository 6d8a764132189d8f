"""A process's participation in a run: its ring, its recorder, flushes, and the report of losses at the end."""

import logging
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tensormeter.agent.launch import reap_agents
from tensormeter.agent.monitor import AgentMonitor
from tensormeter.conventions.fitting import OmittedValue
from tensormeter.conventions.limits import CONFIG_BYTES
from tensormeter.conventions.losses import describe_losses
from tensormeter.conventions.semconv import LOCAL_WORLD_SIZE
from tensormeter.conventions.unicode_names import printable
from tensormeter.disk.standard_files import reserve_standard_files
from tensormeter.logger import get_logger
from tensormeter.record.device.page_locking import unlock_retired
from tensormeter.record.logs.output_capture import OutputCapture
from tensormeter.record.logs.output_files import find_output_ends, find_output_files, output_leads_to
from tensormeter.record.logs.output_relay import OutputRelay
from tensormeter.record.recorder import Limits, Recorder
from tensormeter.record.rows.lane import Writer
from tensormeter.record.runtime.metrics import RuntimeMetrics
from tensormeter.resource import describe_rank
from tensormeter.ring.format import Drop, HeaderWord, SpoolLoss, State
from tensormeter.session.announcement import sync_command
from tensormeter.session.code_request import request_code
from tensormeter.session.exit_hooks import Failure
from tensormeter.session.leader import is_leader
from tensormeter.session.membership import Existence, Joining, Membership, RunIdentity, with_basis

__all__ = ["FlushRequest", "RunProcess"]

logger: Final = get_logger()

_POLL_INTERVAL: Final = 0.01
"""Interval, in seconds, between checks of the ring's header while a process waits for delivery."""

_PULSE_AGE: Final = 3.0
"""Age of the agent's last pulse, in seconds, above which a forked child does not rely on the agent.

An agent normally sends a pulse every second.
"""

_WAKE_SHARE: Final = 1 / 16
"""Share of a lane that is written before the process wakes a sleeping agent. An agent expects half of it at most."""

_MOST_NAMED: Final = 5
"""Maximum number of configuration values that one warning names."""

_LONGEST_NAME: Final = 100
"""Maximum length of a name in such a warning, in characters."""

_MOST_LEFT_OUT: Final = 50
"""Maximum number of omitted configuration values whose names are remembered. Further values are only counted."""


class FlushRequest(NamedTuple):
    """A request for the agent to deliver everything recorded so far.

    Attributes:
        number: Number of the request in the ring's header.
        positions: Position of each lane at the time of the request.
        rejected: Number of refused items that had been quarantined at the time of the request, and number of those that
            had been lost.
    """

    number: int
    positions: list[int]
    rejected: tuple[int, int]


class RunProcess:
    """One process of a run, from construction until `finish`.

    Attributes:
        id: Globally unique ID, sent as the resource's `service.instance.id`.
        parent: ID of the parent process, if it belongs to the run; else None. A child does not determine the run's
            final state and does not wait for delivery.
        attempt: Number of the attempt, from 1. The agent may correct it before delivery.
        basis: Source of the attempt number; "" if the agent does not need to check it.
        first_step: Step of the first row logged without a step. The agent may replace it before delivery.
        resource: OpenTelemetry resource attributes of the data.
        ring: Ring of the process.
        recorder: Recorder that writes into the ring.
    """

    def __init__(
        self,
        run: RunIdentity,
        *,
        parent: str | None,
        forked_from: "RunProcess | None" = None,
        on_writer: Callable[[Writer], None],
        on_fork: Writer,
        on_text: Callable[[str, str], None],
    ) -> None:
        """Create the ring, and start an agent unless one is already running.

        Args:
            run: Run to join.
            parent: See the attribute of that name.
            forked_from: The parent's `RunProcess` in a forked child; else None.
            on_writer: See `Recorder`.
            on_fork: See `Recorder`.
            on_text: See `MediaWriter`.

        Raises:
            OSError, RingError: No ring can be created.
        """
        self.id = uuid.uuid4().hex
        self.parent = parent
        self._run = run
        self._pid = os.getpid()
        self._left_out: set[str] = set()
        self._documents: dict[str, Mapping[str, Any]] = {}
        self._document_warned = False
        self._existence: Existence = run.existence if parent is None and is_leader(run.settings) else ""
        self._detached = False
        self._flushing = threading.RLock()  # reentrant, because a signal handler may flush
        reserve_standard_files()
        unlock_retired()  # may wait for a device, so the lock that all runs share must not be held
        joining = Joining(run, self.id, parent)
        membership = None
        if forked_from is not None:
            membership = joining.join_parent(forked_from._membership, forked_from._keeps_agent_running)
        if membership is None:
            membership = joining.join()
        self._membership: Membership = membership
        self._settings, self._directory, self.ring = membership.settings, membership.directory, membership.ring
        self.attempt, self.basis, self.resource = membership.attempt, membership.basis, membership.resource
        self.first_step = membership.first_step
        self.recorder = Recorder(
            self.ring,
            on_writer=on_writer,
            on_stride=self._tend,
            limits=Limits(self._settings.max_metric_names, self._settings.media_buffer_bytes),
            one_launch=self._settings.device_path == "auto",
            on_fork=on_fork,
            first_step=membership.first_step,
        )
        self.recorder.watch_texts(on_text)
        self._runtime_metrics = RuntimeMetrics(self.recorder, self._settings.sample_interval)
        self._monitor = AgentMonitor(run.id, self._directory, self._settings, self.ring)
        if (
            parent is None
            and self._settings.record_code
            and self._settings.agent != "off"
            and is_leader(self._settings)
        ):
            self.recorder.request_code(request_code())
        self._woke_at = self.recorder.positions
        """Positions of the lanes at which this process last woke the agent."""
        self._membership.waker.wake()
        self._output = self._capture_output()

    def _capture_output(self) -> OutputCapture | None:
        """Start capturing the console and log records, if this rank's output is to be recorded."""
        settings = self._settings
        if settings.console == "off" or (settings.console == "first" and not is_leader(settings)):
            return None
        is_child = self.parent is not None
        captured = {"off": (), "files": (stat.S_ISREG,), "all": (stat.S_ISREG, stat.S_ISFIFO)}[
            settings.console_children
        ]
        if is_child and output_leads_to(captured):  # the parent captures the output
            return None
        level = None if settings.log_level == "off" else logging.getLevelNamesMapping()[settings.log_level.upper()]
        capture = OutputCapture.start(self.ring.path, self._membership.waker.wake, level=level)
        if capture is not None and settings.console_children != "off" and not is_child:
            capture.files = find_output_files(shared=(describe_rank().get(LOCAL_WORLD_SIZE) or 1) > 1)
            capture.relay = OutputRelay.start(self.ring.path) if settings.console_children == "all" else None
            self.ring.add_metadata({"outputs": capture.files, "relay": capture.relay is not None})
        return capture

    def _keeps_agent_running(self) -> bool:
        """Return whether an agent is running that cannot end while the parent records. Called in a forked child."""
        words = self.ring.words
        age = time.monotonic() - words[HeaderWord.PULSE] / 1e9
        return os.getppid() == self._pid and words[HeaderWord.STATE] == State.OPEN and age < _PULSE_AGE

    @property
    def is_this(self) -> bool:
        """Whether the current process created this object, rather than its parent before a fork."""
        return self._pid == os.getpid()

    def describe(self, run: RunIdentity) -> None:
        """Use the resource of the given run for all data recorded from now on."""
        self._run = run
        self.resource = run.describe(self.id, self.attempt)
        if not self.ring.add_metadata({"resource": with_basis(self.resource, self.basis)}):
            logger.warning(
                "run %s: resource attributes were not recorded, because they cannot be stored next to the ring; free "
                "space in %s",
                run.id,
                self.ring.path.parent,
            )

    def write_document(self, name: str, changes: Mapping[str, Any] | None, values: Mapping[str, Any]) -> None:
        """Record a change of one of the run's documents. The agent may skip some changes.

        Args:
            name: Name of the document: `config`, `summary` or `definitions`.
            changes: Entries that were added or replaced; None if entries were removed.
            values: The whole document after the change.
        """
        if name not in self._documents:  # the file does not contain the entries that the document began with
            changes = values
        self._documents[name] = values
        try:
            self.ring.write_documents(None if changes is None else {name: changes}, self._documents)
        except OSError as error:
            if not self._document_warned:
                self._document_warned = True
                logger.warning(
                    "run %s: the %s was not updated, because it cannot be stored next to the ring: %s; free space in %s",
                    *(self._run.id, name, error.strerror, self.ring.path.parent),
                )

    def leave_out(self, document: str, values: Sequence[OmittedValue]) -> None:
        """Count values that were omitted from a document, and warn about the largest, once per name.

        A warning has already named values of size 0.
        """
        unnamed = [value for value in values if value.size]
        new = {value.name for value in unnamed} - self._left_out
        warns = bool(new) and len(self._left_out) < _MOST_LEFT_OUT
        self._left_out.update(new if warns else ())
        largest = ", ".join(
            f"{document}.{printable(value.name[:_LONGEST_NAME])} ({value.size:,} bytes)"
            for value in unnamed[:_MOST_NAMED]
        )
        more = f" and {len(unnamed) - _MOST_NAMED} more" if len(unnamed) > _MOST_NAMED else ""
        self.recorder.count_lost(
            Drop.CONFIG_TOO_LARGE,
            len(values),
            f"run {self._run.id}: the {'configuration' if document == 'config' else document} is larger than {CONFIG_BYTES >> 20} MiB as JSON, so its largest "
            f"values were not recorded: {largest}{more}. Log them as a Table or Text"
            if warns
            else "",
            names=[value.name for value in values],
        )

    def request_flush(self) -> "FlushRequest":
        """Ask the agent to deliver all recorded data now, without waiting for `schedule_delay`. Does not block."""
        with self._flushing:
            positions = self.recorder.positions
            request = FlushRequest(self.ring.request_flush(positions), positions, self._rejected())
        self._membership.waker.wake()
        return request

    def wait_for_flush(self, request: "FlushRequest", timeout: float) -> bool:
        """Wait until all data recorded before a flush request is delivered, or written to disk in an offline run.

        Args:
            request: Result of `request_flush`.
            timeout: Maximum time to wait in seconds. The agent continues the flush afterwards.

        Returns:
            Whether all data was delivered and receivers refused nothing. The method returns False before the timeout if
            no agent delivers this run, or once all data is on disk but the receiver is unreachable. It also does so in
            a child that has finished, because the agent no longer reports to that child.
        """
        words = self.ring.words
        if self._settings.agent == "off":
            return False
        wait = threading.Event().wait
        deadline = time.monotonic() + timeout
        while not self._is_flushed(request):
            spooled = all(
                tail >= position for tail, position in zip(self.ring.tail_positions(), request.positions, strict=True)
            )
            left = deadline - time.monotonic()
            # The agent may have written both words since the last check, so check again.
            is_stalled = spooled and words[HeaderWord.STALLED] and not self._is_flushed(request)
            if self._detached or is_stalled or left <= 0:
                return False
            self._monitor.check()
            if threading.current_thread() is threading.main_thread():
                # An event query on another thread could disturb a CUDA graph capture.
                self.recorder.look_for_pending()
            wait(min(_POLL_INTERVAL, left))
        return self._rejected() == request.rejected

    def _is_flushed(self, request: "FlushRequest") -> bool:
        words = self.ring.words
        if words[HeaderWord.ENDED]:  # the agent may have ended
            return self._settings.mode == "offline" or words[HeaderWord.PENDING_REQUESTS] == 0
        return words[HeaderWord.FLUSHED] >= request.number

    def _rejected(self) -> tuple[int, int]:
        """Return how many of the refused items have been quarantined so far, and how many have been lost."""
        words = self.ring.words
        return words[HeaderWord.QUARANTINED_ITEMS], words[HeaderWord.SPOOL_LOSSES + SpoolLoss.REFUSED]

    @property
    def sigterm_word(self) -> memoryview:
        """Ring word for the time of a SIGTERM.

        A process that is killed after a SIGTERM counts as preempted, not crashed.
        """
        return self.ring.words[HeaderWord.SIGTERM : HeaderWord.SIGTERM + 1]

    def close(self, state: State, failure: Failure) -> None:
        """Stop recording.

        Args:
            state: Final state of the run.
            failure: Reason why the run ended; empty if there is none.
        """
        if self._output is not None:
            self._output.stop()
            if self._output.files:
                self.ring.add_metadata({"output_ends": find_output_ends(self._output.files)})
        if failure.message:
            self.ring.add_metadata({"end": failure.message, "traceback": failure.traceback})
        self._runtime_metrics.sample()
        self.recorder.close(state)
        self._membership.waker.wake()

    def finish(self, timeout: float) -> str:
        """After `close`, wait for delivery as described in `Run.finish`. Ctrl-C ends the wait immediately.

        Args:
            timeout: Maximum time to wait in seconds.

        Returns:
            Clause about the delivery, such as "all data was delivered", or "" in a child process.
        """
        outcome = ""
        try:
            if self.parent is None:
                outcome = self._wait_for_delivery(timeout)
            if self._report_losses() and outcome:
                outcome += ", except for the losses above"
        finally:
            self._detached = self.parent is not None
            self._membership.waker.close()
            self.ring.release()
            reap_agents()
        return outcome

    def _tend(self) -> None:
        """Check the agent and sample the runtime's metrics. Log calls do this regularly."""
        if self.ring.words[HeaderWord.AGENT_SLEEPS]:
            self._wake_if_behind()
        if self._existence:
            self._check_existence()
        self._monitor.check()
        self._runtime_metrics.beat()

    def _check_existence(self) -> None:
        """Warn if the agent has settled an attempt number that contradicts `RunIdentity.existence`."""
        number = self.ring.words[HeaderWord.SETTLED_ATTEMPT]
        if not number:
            return
        existence, self._existence = self._existence, ""
        if existence == "never" and number > 1:
            logger.warning(
                "run %s already exists, although resume='never' was given; this is its attempt %d. Pass another id",
                *(self._run.id, number),
            )
        elif existence == "must" and number == 1:
            logger.warning(
                "run %s is new, although resume='must' was given: no earlier attempt is known. Check its id and project",
                self._run.id,
            )

    def _wake_if_behind(self) -> None:
        """Wake a sleeping agent if a lane has filled up further than the agent expects."""
        positions = self.recorder.positions
        growth = zip(positions, self._woke_at, self.ring.lanes, strict=True)
        if any(now - before > size * _WAKE_SHARE for now, before, (_, size) in growth):
            self._woke_at = positions
            self._membership.waker.wake()

    def _wait_for_delivery(self, timeout: float) -> str:
        run, settings, words = self._run, self._settings, self.ring.words
        is_kept = settings.agent == "off" or settings.mode == "offline"
        on_disk = f"the data is in {settings.directory}; deliver it with `{sync_command(settings)}`"
        if settings.agent == "off":
            return on_disk
        wait = threading.Event().wait
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if words[HeaderWord.ENDED] and (is_kept or words[HeaderWord.PENDING_REQUESTS] == 0):
                return on_disk if is_kept else "all data was delivered"
            if words[HeaderWord.ENDED] and words[HeaderWord.STALLED]:
                break
            self._monitor.check()
            wait(_POLL_INTERVAL)
        logger.warning(
            "run %s has not been fully delivered to %s yet%s; the agent keeps trying for %.0f s%s; after that, deliver "
            "the rest with "
            "`tensormeter sync`",
            run.id,
            ", ".join(f"{name} ({settings.endpoint})" if name == "experiment" else name for name in settings.exporters),
            f" ({self.ring.trouble})" if self.ring.trouble else "",
            settings.linger_timeout,
            ", or until this process ends" if settings.agent == "thread" else "",
        )
        return "not all data was delivered yet"

    def _report_losses(self) -> bool:
        """Warn about data that will never arrive. Return whether there is any."""
        self._monitor.report()
        if self._existence:
            self._check_existence()
        drops = self.ring.drops() | (self._output.drops() if self._output is not None else {})
        losses = self.ring.spool_losses()
        for sentence in describe_losses(drops, self.recorder.lost_names):
            logger.warning("run %s: not recorded: %s", self._run.id, sentence)
        for sentence in describe_losses(losses):
            logger.warning("run %s: recorded, but lost before delivery: %s", self._run.id, sentence)
        if self.ring.lost:
            logger.warning("run %s: most recent loss: %s", self._run.id, self.ring.lost)
        rejected = self.ring.words[HeaderWord.QUARANTINED_ITEMS]
        if rejected:
            logger.warning(
                "run %s: receivers refused %d items, which are quarantined in %s: %s",
                self._run.id,
                rejected,
                self._directory.path,
                self.ring.set_aside or "see its agent.log",
            )
        return bool(drops or losses or rejected)
