"""One process's part in a run: its ring, its recorder, and the care for an agent."""

import contextlib
import dataclasses
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tensormeter.agent.attempts.counter import count_attempt
from tensormeter.agent.launch import ensure_agent, reap_agents
from tensormeter.agent.monitor import AgentMonitor
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.run_directory.shared_memory import make_memory_directory, memory_directories
from tensormeter.conventions.attempt_number import Basis, Member
from tensormeter.conventions.fitting import LeftOut
from tensormeter.conventions.limits import CONFIG_BYTES
from tensormeter.conventions.losses import describe_losses
from tensormeter.conventions.semconv import RANK, RUN_ATTEMPT_UNSETTLED, WORLD_SIZE
from tensormeter.conventions.unicode_names import printable
from tensormeter.disk.deadline import within
from tensormeter.disk.private import weakness
from tensormeter.disk.probe import answers
from tensormeter.disk.user_folders import NO_FOLDER
from tensormeter.errors import RingError
from tensormeter.logger import get_logger
from tensormeter.record.device.page_locking import unlock_retired
from tensormeter.record.recorder import Recorder
from tensormeter.record.rows.lane import Writer
from tensormeter.record.runtime.metrics import RuntimeMetrics
from tensormeter.resource import describe_launch, describe_process, describe_rank
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import AUTOMATIC_STEPS, Drop, HeaderWord, SpoolLoss, State
from tensormeter.settings import Settings

__all__ = ["FlushRequest", "RunIdentity", "RunProcess"]

logger: Final = get_logger()

_WAIT: Final = 0.01

_BEGIN_TIMEOUT: Final = 3.0
"""Seconds after which a state directory that does not answer is not used."""

_LOCK_PATIENCE: Final = 2.0
"""Seconds to wait for other processes that begin, which take a few milliseconds each."""

_PULSE_AGE: Final = 2.0
"""Seconds since the last pulse after which a forked child does not count on its parent's agent; an agent makes four a second."""

_MEMORY_SPOOL_BYTES: Final = 64 << 20
"""Size of a spool that is kept in memory, at most."""

_NOT_FOR_CONFIGURATION: Final = 1 / 4
"""Share of the ring's dictionary that updates of the configuration leave to rows."""

_MOST_NAMED: Final = 5
_MOST_LEFT_OUT: Final = 50
"""Values of the configuration that are named when they are left out; those that follow are only counted."""
_LONGEST_NAMED: Final = 100
"""Values that a warning about the configuration names, at most, and characters of each name."""

_CHILD_BUFFER_BYTES: Final = 1 << 20
"""Ring of a child process, at most: there may be many, and they log little."""


@dataclass(frozen=True)
class RunIdentity:
    """What all processes of a run have in common.

    Attributes:
        id: Unique in its project.
        name: For people.
        config: JSON values.
        settings: In force for the run.
        resource: Attributes that an OpenTelemetry program adds to those of `describe_process`.
        resume: Whether there was an attempt at the run before, perhaps on another machine.
        basis: Of a child: where its parent's attempt number comes from; "" if there is nothing to settle.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    settings: Settings
    resource: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    basis: Basis = ""

    @property
    def first_step(self) -> int:
        """The step of the first row that names none; that of a resumed run is known later."""
        return AUTOMATIC_STEPS if self.resume else 0


class FlushRequest(NamedTuple):
    """A request to the agent to deliver what was recorded.

    Attributes:
        number: Its number in the ring's header.
        positions: How far each lane was written.
        rejected: Numbers of items that receivers had refused before.
    """

    number: int
    positions: list[int]
    rejected: tuple[int, int]


@dataclass(frozen=True)
class _Place:
    """Where a process takes part in its run.

    Attributes:
        settings: In force there.
        directory: The run's directory.
        attempt: Number of the attempt, as counted there.
        basis: Where that number comes from.
        resource: Attributes of the process's resource.
        ring: The process's ring.
        weakness: As for `tensormeter.private.weakness`, of the directory.
    """

    settings: Settings
    directory: RunDirectory
    attempt: int
    basis: Basis
    resource: Mapping[str, Any]
    ring: RingFile
    weakness: str

    def leave(self) -> None:
        """Give up what was made, because the process takes part elsewhere."""
        self.ring.release()
        with contextlib.suppress(OSError):
            self.ring.remove()


class RunProcess:
    """A process in a run, from construction until `finish`.

    Attributes:
        id: Unique in the world; `service.instance.id` of the resource.
        parent: The process that this one was started from, if that one began the run. A child has no say in whether the
            run has ended, and waits for no delivery.
        attempt: Which attempt at the run it is part of, from 1. The agent may correct it before it delivers.
        basis: Where that number comes from, if there is something for the agent to settle.
        resource: Attributes of the OpenTelemetry resource that its data is sent with.
        ring: Its ring.
        recorder: Writes into it.
    """

    def __init__(
        self,
        run: RunIdentity,
        *,
        parent: str | None,
        forked_from: "RunProcess | None" = None,
        on_writer: Callable[[Writer], None],
        on_fork: Writer,
    ) -> None:
        """Make the ring and see that there is an agent.

        Args:
            run: Which run.
            parent: See the attribute.
            forked_from: In a forked child, the part of the process whose copy this one is.
            on_writer: As for `Recorder`.
            on_fork: As for `Recorder`.

        Raises:
            OSError, RingError: The machine refuses.
        """
        self.id = uuid.uuid4().hex
        self.parent = parent
        self._run = run
        self._pid = os.getpid()
        self._settings = run.settings
        self._said: set[str] = set()
        self._left_out: set[str] = set()
        self._reconfigured = 0  # Unix time in nanoseconds
        self._let_go = False
        self._flushing = threading.RLock()  # re-entered by a signal handler that flushes
        unlock_retired()  # may wait for a device, so not under the lock of all runs
        place = None if forked_from is None else self._join_beside(forked_from)
        if place is None:
            self._enter()
        else:
            self._take_place(place)
        self.recorder = Recorder(
            self.ring,
            on_writer=on_writer,
            on_stride=self._look_around,
            media_buffer_bytes=self._settings.media_buffer_bytes,
            one_launch=self._settings.device_path == "auto",
            on_fork=on_fork,
            first_step=run.first_step,
        )
        self._vitals = RuntimeMetrics(self.recorder, self._settings.sample_interval)
        self._monitor = AgentMonitor(run.id, self._directory, self._settings, self.ring)

    def _join_beside(self, other: "RunProcess") -> "_Place | None":
        """In a forked child, take part where its parent does, without a look at the disk: the parent's agent finds each ring in shared
        memory.

        Returns:
            None if the rings are elsewhere, or it is not certain that there is an agent.
        """
        directory = other._directory
        if directory.memory_lock is None or not other._keeps_an_agent():
            return None

        def join(late: threading.Event) -> _Place:
            resource = self._resource(other.attempt)
            metadata = self._metadata(resource, other.basis)
            ring = self._create_ring(directory, other._settings, metadata, [directory.rings])
            return dataclasses.replace(other._place, resource=resource, ring=ring)

        try:
            place = within(_BEGIN_TIMEOUT, join, _Place.leave)
        except (OSError, RingError):
            return None
        if not other._keeps_an_agent():  # it may have left before the ring was there
            place.leave()
            return None
        return place

    def _keeps_an_agent(self) -> bool:
        """In a child forked from this process: whether there is an agent that cannot leave, because this process records."""
        words = self.ring.words
        age = time.monotonic() - words[HeaderWord.PULSE] / 1e9
        return os.getppid() == self._pid and words[HeaderWord.STATE] == State.OPEN and age < _PULSE_AGE

    def _enter(self) -> None:
        """Take part in the run in `settings.directory`, or in memory, if that cannot be used or does not answer.

        Raises:
            OSError, RingError: The machine refuses.
        """
        run = self._run
        try:
            self._take_place(self._join_in_time(run.settings))
        except OSError as error:
            homeless = run.settings.directory == NO_FOLDER
            self._take_place(self._join_in_memory(error))
            logger.warning(
                "run %s is kept in memory (%s), because %s cannot be used (%s): it survives its processes, but no reboot",
                run.id,
                self._settings.directory,
                run.settings.directory,
                "this user has no home folder; set HOME or TENSORMETER_DIR" if homeless else error,
            )
        if self.parent is None and self._place.weakness:
            logger.warning(
                "run %s: other users can replace %s (%s). `tensormeter sync` ignores the destination that is stored there; set "
                "TENSORMETER_DIR to a private folder",
                run.id,
                self._directory.path,
                self._place.weakness,
            )

    def _take_place(self, place: "_Place") -> None:
        self._place = place
        self._settings, self._directory, self.ring = place.settings, place.directory, place.ring
        self.attempt, self.basis, self.resource = place.attempt, place.basis, place.resource

    def _join_in_time(self, settings: Settings) -> "_Place":
        """Raises TimeoutError, an OSError, if a disk takes too long."""
        if not answers(settings.directory, _BEGIN_TIMEOUT):
            raise TimeoutError(f"it does not answer within {_BEGIN_TIMEOUT:.0f} s")
        return within(_BEGIN_TIMEOUT, lambda late: self._join(settings, late), _Place.leave)

    def _join_in_memory(self, reason: OSError) -> "_Place":
        """As `_join_in_time`, in a folder in memory; `reason` is raised if the run was to be kept there anyway."""
        settings = self._run.settings

        def join(settings: Settings, late: threading.Event) -> _Place:
            if settings.directory in memory_directories(settings)[0]:
                raise reason
            room = min(settings.spool_max_bytes, _MEMORY_SPOOL_BYTES)
            memory = make_memory_directory(settings)
            return self._join(settings.replace(directory=memory, spool_max_bytes=room), late)

        try:
            return within(_BEGIN_TIMEOUT, functools.partial(join, settings), _Place.leave)
        except TimeoutError:
            # The folder for rings may be on the disk that does not answer, too.
            for other in (Path("/dev/shm"), None):  # noqa: S108 - the run's folder in it is private (0700)
                with contextlib.suppress(OSError):
                    elsewhere = settings.replace(buffer_directory=other)
                    return within(_BEGIN_TIMEOUT, functools.partial(join, elsewhere), _Place.leave)
            raise

    def _join(self, settings: Settings, late: threading.Event) -> "_Place":
        """Take part in the run as it is found in `settings.directory`. Changes nothing here; blocks for the disk."""
        run = self._run
        with runs_locked(settings.directory, patience=_LOCK_PATIENCE):
            directory = RunDirectory.create(settings, run.id, run.name)
            attempt, basis = self._count_attempt(directory, settings)
            resource = self._resource(attempt)
            ring = self._create_ring(directory, settings, self._metadata(resource, basis), directory.ring_folders)
            place = _Place(settings, directory, attempt, basis, resource, ring, weakness(directory.path))
            if not late.is_set():
                self._start_agent(place)
        return place

    def _count_attempt(self, directory: RunDirectory, settings: Settings) -> tuple[int, Basis]:
        """The number of the attempt, and what the agent has to settle about it."""
        run = self._run
        if self.parent is not None:  # children are part of their parent's attempt
            return settings.attempt or 1, run.basis
        if settings.run_id is None:  # no later run can have a random id
            return settings.attempt or 1, ""
        ranks = describe_rank()
        member = Member(self.id, ranks.get(RANK), ranks.get(WORLD_SIZE), describe_launch(os.environ))
        number, provisional = count_attempt(
            directory, settings.project, member, resume=run.resume, number=settings.attempt
        )
        if settings.attempt is not None:
            return number, "given" if run.resume else ""
        return number, "unknown" if provisional else "counted"

    @property
    def is_this(self) -> bool:
        """False in a forked copy."""
        return self._pid == os.getpid()

    def describe(self, run: RunIdentity) -> None:
        """Let the resource of what is recorded from now on be this one's."""
        self._run = run
        self.resource = self._resource(self.attempt)
        if not self.ring.add_metadata({"resource": self._unsettled(self.resource, self.basis)}):
            logger.warning("run %s: resource attributes are not recorded: too many different names were logged", run.id)

    def reconfigure(self, run: RunIdentity) -> None:
        """Let the run's configuration be this one's from now on."""
        self._run = run
        self._reconfigured = time.time_ns()
        changed = {"config": run.config, "reconfigured": self._reconfigured}
        if self.ring.dictionary_left >= _NOT_FOR_CONFIGURATION and self.ring.add_metadata(changed):
            return
        if not self.recorder.send_config(run.config):
            message = "the configuration is not updated: too much waits for the agent"
            if message not in self._said:
                self._said.add(message)
                logger.warning("run %s: %s", run.id, message)

    def leave_out_of_config(self, values: Sequence[LeftOut]) -> None:
        """Count values that the configuration had no room for, and name the largest in a warning: once for each name, of a few names."""
        new = {value.name for value in values} - self._left_out
        is_news = bool(new) and len(self._left_out) < _MOST_LEFT_OUT
        self._left_out.update(new if is_news else ())
        largest = ", ".join(
            f"config.{printable(value.name[:_LONGEST_NAMED])} ({value.size:,} bytes)" for value in values[:_MOST_NAMED]
        )
        more = f" and {len(values) - _MOST_NAMED} more" if len(values) > _MOST_NAMED else ""
        self.recorder.count_lost(
            Drop.CONFIG_TOO_LARGE,
            len(values),
            f"run {self._run.id}: the configuration is larger than {CONFIG_BYTES >> 20} MiB as JSON, so its largest values are not "
            f"recorded: {largest}{more}. Log them as a Table or Text"
            if is_news
            else "",
            names=[value.name for value in values],
        )

    def request_flush(self) -> "FlushRequest":
        """Ask the agent to deliver everything recorded so far now, without waiting for `schedule_delay`. Does not block."""
        with self._flushing:
            positions = self.recorder.positions
            return FlushRequest(self.ring.request_flush(positions), positions, self._rejected())

    def wait_for_flush(self, request: "FlushRequest", timeout: float) -> bool:
        """Wait until what was recorded before a flush request is delivered, or, in an offline run, written to disk.

        Args:
            request: From `request_flush`.
            timeout: Seconds to wait, at most. The agent goes on with the flush after that.

        Returns:
            Whether it is delivered, and none of it was rejected. False at once if no agent delivers this run, the receiver
            cannot be reached, or this is a child that has finished: the agent does not tell it what becomes of its rows.
        """
        words = self.ring.words
        if self._settings.agent == "off":
            return False
        wait = threading.Event().wait
        deadline = time.monotonic() + timeout
        while not self._is_flushed(request):
            spooled = all(tail >= position for tail, position in zip(self.ring.tails(), request.positions, strict=True))
            left = deadline - time.monotonic()
            if self._let_go or (spooled and words[HeaderWord.STALLED]) or left <= 0:
                return False
            self._monitor.look()
            if threading.current_thread() is threading.main_thread():
                # Of other threads, a query may disturb a CUDA graph that is captured meanwhile.
                self.recorder.look_for_pending()
            wait(min(_WAIT, left))
        return self._rejected() == request.rejected

    def _is_flushed(self, request: "FlushRequest") -> bool:
        words = self.ring.words
        if words[HeaderWord.ENDED]:  # the agent may be gone
            return self._settings.mode == "offline" or words[HeaderWord.PENDING_REQUESTS] == 0
        return words[HeaderWord.FLUSHED] >= request.number

    def _rejected(self) -> tuple[int, int]:
        """Numbers of items that receivers have refused so far."""
        words = self.ring.words
        return words[HeaderWord.QUARANTINED_ITEMS], words[HeaderWord.SPOOL_LOSSES + SpoolLoss.REFUSED]

    @property
    def sigterm_word(self) -> memoryview:
        """Where it says when the process was told to end: if it just vanishes then, it was preempted and did not crash."""
        return self.ring.words[HeaderWord.SIGTERM : HeaderWord.SIGTERM + 1]

    def note_sigterm(self) -> None:
        """The process was told to end."""
        self.sigterm_word[0] = time.time_ns()

    def close(self, state: State, message: str) -> None:
        """Record no more.

        Args:
            state: How the run ended.
            message: What ended it, or "".
        """
        if message:
            self.ring.add_metadata({"end": message})
        self._vitals.sample()
        self.recorder.close(state)

    def finish(self, timeout: float) -> None:
        """After `close`: wait for delivery as `Run.finish` says. Ctrl-C leaves at once.

        Args:
            timeout: Seconds to wait, at most.
        """
        try:
            if self.parent is None:
                self._wait_for_delivery(timeout)
            self._report_losses()
        finally:
            self._let_go = self.parent is not None
            self.ring.release()
            reap_agents()

    @staticmethod
    def _unsettled(resource: Mapping[str, Any], basis: Basis) -> dict[str, Any]:
        """A resource with the basis of its attempt, which the agent takes out."""
        return {**resource, RUN_ATTEMPT_UNSETTLED: basis} if basis else dict(resource)

    def _resource(self, attempt: int) -> Mapping[str, Any]:
        run = self._run
        return describe_process(
            run.settings.project,
            run.id,
            run.name,
            self.id,
            attempt=attempt,
            given=run.resource,
            command=run.settings.record_command,
        )

    def _metadata(self, resource: Mapping[str, Any], basis: Basis) -> dict[str, Any]:
        run = self._run
        settings = run.settings
        found: dict[str, Any] = {
            "resource": self._unsettled(resource, basis),
            "config": run.config,
            "parent": self.parent,
            "resume": run.resume,
        }
        if self._reconfigured:
            found["reconfigured"] = self._reconfigured
        said = {"group": settings.group, "tags": settings.tags, "notes": settings.notes}
        return found | {name: value for name, value in said.items() if value}

    def _create_ring(
        self, directory: RunDirectory, settings: Settings, metadata: Mapping[str, Any], folders: Sequence[Path]
    ) -> RingFile:
        """In the first of the directory's folders for rings where it can be mapped; a small one, if files may not be large."""
        size = settings.buffer_bytes if self.parent is None else min(settings.buffer_bytes, _CHILD_BUFFER_BYTES)
        errors: list[OSError | RingError] = []
        for room in dict.fromkeys([size, min(size, _CHILD_BUFFER_BYTES)]):
            for folder in folders:
                try:
                    directory.make_ring_directory(folder)
                    ring = RingFile.create(folder / f"{self.id}.ring", metadata, buffer_bytes=room)
                except (OSError, RingError) as error:
                    errors.append(error)
                    continue
                if errors and folder == directory.rings_on_disk:
                    logger.warning("%s; the ring is on disk instead, where log calls can wait for it", errors[0])
                elif errors:
                    logger.warning("%s; the ring is in %s instead", errors[0], folder)
                return ring
        raise errors[0]

    def _start_agent(self, place: "_Place") -> None:
        """See that there is an agent."""
        if place.settings.agent == "off":
            return
        try:
            ensure_agent(place.directory, place.settings)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            logger.warning(
                "no agent for run %s can be started (%s); `tensormeter sync` delivers the run", self._run.id, error
            )

    def _look_around(self) -> None:
        """Called now and then by log calls."""
        self._monitor.look()
        self._vitals.beat()

    def _wait_for_delivery(self, timeout: float) -> None:
        run, settings, words = self._run, self._settings, self.ring.words
        if settings.agent == "off":
            logger.warning("run %s is recorded; deliver it with `tensormeter sync`", run.id)
            return
        wait = threading.Event().wait
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if words[HeaderWord.ENDED] and (settings.mode == "offline" or words[HeaderWord.PENDING_REQUESTS] == 0):
                if settings.mode == "offline":
                    logger.warning("run %s is on disk; deliver it with `tensormeter sync`", run.id)
                return
            if words[HeaderWord.ENDED] and words[HeaderWord.STALLED]:
                break
            self._monitor.look()
            wait(_WAIT)
        logger.warning(
            "run %s is not delivered to %s yet%s; the agent goes on trying for %.0f s, then `tensormeter sync` delivers the "
            "rest",
            run.id,
            ", ".join(f"{name} ({settings.endpoint})" if name == "experiment" else name for name in settings.exporters),
            f" ({self.ring.trouble})" if self.ring.trouble else "",
            settings.linger_timeout,
        )

    def _report_losses(self) -> None:
        """Say what will never arrive."""
        self._monitor.report()
        for sentence in describe_losses(self.ring.drops(), self.recorder.lost_names):
            logger.warning("run %s: not recorded: %s", self._run.id, sentence)
        for sentence in describe_losses(self.ring.spool_losses()):
            logger.warning("run %s: recorded, but will not arrive: %s", self._run.id, sentence)
        if self.ring.lost:
            logger.warning("run %s: the most recent loss: %s", self._run.id, self.ring.lost)
        rejected = self.ring.words[HeaderWord.QUARANTINED_ITEMS]
        if rejected:
            logger.warning(
                "run %s: receivers refused %d items, which are set aside in %s: %s",
                self._run.id,
                rejected,
                self._directory.path,
                self.ring.set_aside or "its agent.log says why",
            )
