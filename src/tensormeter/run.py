"""Runs: what a training script holds.

Nothing in here talks to a network, and nothing but `finish` waits.
If the machine does not let a run be recorded (no space for the ring, no directory that can be written), the script is
warned and goes on with a run that records nothing.
"""

import atexit
import json
import logging
import os
import secrets
import string
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from tensormeter.errors import RingError, SettingsError, UsageError
from tensormeter.pipeline.directory import RunDirectory, runs_locked
from tensormeter.pipeline.launch import ensure_agent, reap_agents
from tensormeter.record.lane import Writer
from tensormeter.record.recorder import Recorder
from tensormeter.resource import describe_process
from tensormeter.ring import HeaderWord, RingFile, State
from tensormeter.settings import Settings

__all__ = ["Run", "finish", "init", "log"]

logger: Final = logging.getLogger("tensormeter")

_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_WAIT: Final = 0.01
_AGENT_CHECK: Final = 1.0
_UNREACHABLE: Final = 3
"""Failed attempts in a row after which `finish` leaves the rest to the agent."""


class Run:
    """A run in progress, as made by `init`.

    Every method can be called from any thread. `log` can also be called from a signal handler.
    In a forked child the run records nothing, and says so once.

    Attributes:
        id: Unique in its project; the same on every rank.
        name: For people.
        project: What the run belongs to.
        config: As given to `init`, as JSON values.
        settings: In force for this run.
    """

    def __init__(self, settings: Settings, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        self.id = run_id
        self.name = name
        self.project = settings.project
        self.config = dict(config)
        self.settings = settings
        self._pid = os.getpid()
        self._finish_lock = threading.RLock()  # a signal handler may finish the run while `finish` runs
        self._finished = False
        self._ring: RingFile | None = None
        self._recorder: Recorder | None = None
        self._directory: RunDirectory | None = None
        self._agent_checked = time.monotonic()

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record one row.

        Returns at once: no lock that is held over I/O, no network, no encoding, no synchronization with a device.
        Never raises for what is in `values`, nor because delivery fails.
        A value that cannot be recorded is counted, and warned about once for each key.

        Args:
            values: By metric name: numbers, NumPy scalars, arrays and CPU tensors with one element, whose value is taken
                now; or CUDA tensors with one element, whose value is taken in stream order, without waiting for it.
                NaN and infinities are values. Integers are exact up to 64 bits.
            step: Any integer of 64 bits, in any order. One more than the last row's if None.
        """
        # Instances carry a `log` of their own, generated for the keys in use, which shadows this one: see `_use_writer`.
        if self._recorder is not None:
            self._recorder.log(values, step)

    def finish(self, state: str = "finished") -> None:
        """End the run and wait for delivery, for `finish_timeout` seconds at most.

        Returns as soon as everything is delivered, or is on disk and the receiver cannot be reached; the agent then goes
        on by itself. Safe to call twice. Ctrl-C leaves at once, and loses nothing.

        Args:
            state: `finished` or `failed`.

        Raises:
            UsageError: Another state.
        """
        if state not in ("finished", "failed"):
            raise UsageError(f"finish: expected the state 'finished' or 'failed', got {state!r}")
        with self._finish_lock:
            if self._finished or self._pid != os.getpid():
                return
            self._finished = True
        _forget(self)
        if self._ring is None or self._recorder is None:
            return
        self._recorder.close(State[state.upper()])
        self.__dict__.pop("log", None)
        try:
            self._wait_for_delivery(self._ring.words)
            self._report_losses(self._ring)
        finally:
            self._ring.release()
            reap_agents()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish("finished" if kind is None else "failed")

    def __repr__(self) -> str:
        return f"<tensormeter.Run {self.project}/{self.id} {self.name!r}>"

    def _begin(self) -> None:
        """Make the ring and see that there is an agent.

        Raises:
            OSError, RingError: The machine refuses.
        """
        settings = self.settings
        process = uuid.uuid4().hex
        metadata = {
            "resource": describe_process(settings.project, self.id, self.name, process),
            "config": self.config,
        }
        with runs_locked(settings.directory):
            directory = RunDirectory.create(settings, self.id, self.name)
            self._directory = directory
            self._ring = self._create_ring(directory, process, metadata)
            self._recorder = Recorder(self._ring, on_writer=self._use_writer, on_stride=self._check_agent)
            self._start_agent(directory)

    def _create_ring(self, directory: RunDirectory, process: str, metadata: dict[str, Any]) -> RingFile:
        """In shared memory, or else on disk."""
        size = self.settings.buffer_bytes
        try:
            directory.make_ring_directory()
            return RingFile.create(directory.rings / f"{process}.ring", metadata, buffer_bytes=size)
        except (OSError, RingError) as error:
            if directory.rings == directory.rings_on_disk:
                raise
            logger.warning("%s; the ring is on disk instead, where log calls can wait for it", error)
        directory.rings_on_disk.mkdir(exist_ok=True)
        return RingFile.create(directory.rings_on_disk / f"{process}.ring", metadata, buffer_bytes=size)

    def _start_agent(self, directory: RunDirectory) -> bool:
        """See that there is an agent. Returns whether one had to be started."""
        if self.settings.agent == "off":
            return False
        try:
            return ensure_agent(directory, self.settings)
        except OSError as error:
            logger.warning(
                "no agent for run %s can be started (%s); `tensormeter sync` delivers the run", self.id, error
            )
            return False

    def _use_writer(self, writer: Writer) -> None:
        # An attribute of the instance, because the extra call of a method that forwards would cost a fifth of the time.
        self.__dict__["log"] = writer

    def _check_agent(self) -> None:
        """See, once a second at most, whether an agent lives, and start another if not."""
        now = time.monotonic()
        if now - self._agent_checked < _AGENT_CHECK or self._directory is None:
            return
        self._agent_checked = now
        reap_agents()
        if self._start_agent(self._directory):
            logger.warning("the agent of run %s had ended; started another, which goes on where it was", self.id)

    def _wait_for_delivery(self, words: memoryview) -> None:
        settings = self.settings
        if settings.agent == "off":
            logger.warning("run %s is recorded; deliver it with `tensormeter sync`", self.id)
            return
        wait = threading.Event().wait
        deadline = time.monotonic() + settings.finish_timeout
        while time.monotonic() < deadline:
            if words[HeaderWord.ENDED] and (settings.mode == "offline" or words[HeaderWord.PENDING_REQUESTS] == 0):
                if settings.mode == "offline":
                    logger.warning("run %s is on disk; deliver it with `tensormeter sync`", self.id)
                return
            if words[HeaderWord.ENDED] and words[HeaderWord.FAILURES] >= _UNREACHABLE:
                break
            self._check_agent()
            wait(_WAIT)
        logger.warning(
            "run %s is not delivered to %s yet; the agent goes on trying for %.0f s, then `tensormeter sync` delivers the "
            "rest",
            self.id,
            settings.endpoint,
            settings.linger_timeout,
        )

    def _report_losses(self, ring: RingFile) -> None:
        """Say what will never arrive."""
        drops = ring.drops()
        if drops:
            counts = ", ".join(f"{reason} {count}" for reason, count in drops.items())
            logger.warning("run %s: not recorded: %s", self.id, counts)
        rejected = ring.words[HeaderWord.QUARANTINED_ITEMS]
        if rejected and self._directory is not None:
            logger.warning(
                "run %s: %d items were rejected by their receiver and set aside in %s; its agent.log says why",
                self.id,
                rejected,
                self._directory.path,
            )


def init(
    project: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    id: str | None = None,
    mode: str | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
) -> Run:
    """Begin a run.

    Takes some ten milliseconds and talks to no network. The run ends with `Run.finish`, with its `with` block, or when
    the interpreter exits; it counts as failed if an exception ended it, and as crashed if the process just vanished.

    Args:
        project: What the run belongs to.
        name: For people; the id if None.
        config: Hyperparameters and whatever else describes the run. What is not JSON is turned into a `str`.
        id: Of the run; give every rank the same. Random if None.
        mode: `online`, `offline` or `disabled`.
        settings: A `Settings`, or a mapping of its fields. The arguments above take precedence over it.

    Raises:
        SettingsError: An argument, a setting or an environment variable cannot be used.
    """
    given = {"project": project, "name": name, "run_id": id, "mode": mode}
    resolved = _resolve(settings, {key: value for key, value in given.items() if value is not None})
    run_id = resolved.run_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    run = Run(resolved, run_id, resolved.name or run_id, _as_json(config or {}))
    if resolved.mode != "disabled":
        try:
            run._begin()
        except (OSError, RingError) as error:
            logger.warning("run %s records nothing: %s", run_id, error)
    _remember(run)
    return run


def log(values: Mapping[str, Any], step: int | None = None) -> None:
    """`Run.log` of the run that was begun last.

    Raises:
        UsageError: There is none.
    """
    if not _runs:
        raise UsageError("tensormeter.log: there is no run; call tensormeter.init() first")
    _runs[-1].log(values, step)


def finish() -> None:
    """`Run.finish` of the run that was begun last; does nothing if there is none."""
    if _runs:
        _runs[-1].finish()


_runs: list[Run] = []
"""Runs that are not finished, in the order in which they were begun."""

_failed = False


def _remember(run: Run) -> None:
    if not _watching:
        _watching.append(sys.excepthook)
        sys.excepthook = _note_failure
        atexit.register(_finish_all)
    _runs.append(run)


def _forget(run: Run) -> None:
    if run in _runs:
        _runs.remove(run)


_watching: list[Callable[..., Any]] = []
"""The exception hook that was there before ours, once ours is installed."""


def _note_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    global _failed
    _failed = True
    _watching[0](kind, error, trace)


def _finish_all() -> None:
    for run in reversed(_runs.copy()):  # a copy: a forked child's `finish` leaves its parent's runs where they are
        run.finish("failed" if _failed else "finished")


def _resolve(settings: Settings | Mapping[str, Any] | None, given: Mapping[str, Any]) -> Settings:
    if isinstance(settings, Settings):
        return settings.replace(**given)
    fields = dict(settings or {})
    unknown = sorted(set(fields) - Settings.names())
    if unknown:
        raise SettingsError(f"settings: {unknown[0]!r} is not one of {', '.join(sorted(Settings.names()))}")
    return Settings(**{**fields, **given})


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON values.

    Raises:
        SettingsError: Not a mapping, or one that contains itself.
    """
    if not isinstance(config, Mapping):
        raise SettingsError(f"config: expected a mapping, got {type(config).__name__}")
    try:
        return dict(json.loads(json.dumps({str(key): value for key, value in config.items()}, default=str)))
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsError(f"config: cannot be written as JSON ({error})") from None
