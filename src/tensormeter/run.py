"""Runs: what a training script holds.

Nothing in here talks to a network, and nothing but `finish` waits.
If the machine does not let a run be recorded (no space for the ring, no directory that can be written), the script is
warned and goes on with a run that records nothing.
"""

import dataclasses
import json
import logging
import os
import secrets
import string
import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self, cast

from tensormeter import ending
from tensormeter.errors import RingError, SettingsError, UsageError
from tensormeter.exporter import check_exporters
from tensormeter.process import RunIdentity, RunProcess
from tensormeter.record.compilation import break_graph
from tensormeter.record.lane import Writer
from tensormeter.record.reduction import Reduce, Rule
from tensormeter.ring import State
from tensormeter.settings import Settings

__all__ = ["Run", "finish", "init", "log"]

logger: Final = logging.getLogger("tensormeter")

_MAX_DEPTH: Final = 24
"""Levels of a configuration: protobuf's decoders refuse messages nested a hundred deep, and OTLP takes three a level."""

_ID_LETTERS: Final = string.ascii_lowercase + string.digits


class Run:
    """A run in progress, as made by `init`.

    Every method can be called from any thread. `log` can also be called from a signal handler.

    A child process that logs becomes a process of its own within the run: a forked one (a DataLoader worker, say) by its
    first call of `log`, a spawned one by being sent the run, which can be pickled. Settings' `after_fork` can switch the
    former off. Only the process that called `init` decides how the run ends.

    Attributes:
        id: Unique in its project; the same on every rank.
        name: For people.
        project: What the run belongs to.
        config: As given to `init`, as JSON values.
        settings: In force for this run.
    """

    def __init__(self, identity: RunIdentity, *, parent: str | None = None, resume: bool = False) -> None:
        """Use `init`."""
        self.id = identity.id
        self.name = identity.name
        self.project = identity.settings.project
        self.config = dict(identity.config)
        self.settings = identity.settings
        self._identity = identity
        self._parent = parent
        self._resume = resume
        self._process: RunProcess | None = None
        self._finished = False
        self._definitions: list[tuple[str, Rule]] = []
        self._lock = threading.RLock()  # re-entered by a signal handler that finishes the run

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        """Record one row.

        Returns at once: no lock that is held over I/O, no network, no encoding, no synchronization with a device.
        Never raises for what is in `values`, nor because delivery fails.
        A value that cannot be recorded is counted, and warned about once for each key.

        Args:
            values: By metric name: numbers, NumPy scalars, arrays and CPU tensors with one element, whose value is taken
                now; or CUDA tensors with one element, whose value is taken in stream order, without waiting for it.
                NaN and infinities are values. Integers are exact up to 64 bits.
            step: Any integer of 64 bits, in any order. One more than the last row's if None.
            every: Make one value of so many: a metric's values are reduced, on the device if that is where they are, and
                recorded with every `every`-th call that has it; the rest when the run finishes. See `define_metric`.
            reduce: `mean` (if None), `min`, `max`, `sum` or `last`. NaN makes them NaN, `last` aside.
        """
        # Instances carry a `log` of their own, generated for the keys in use, which shadows this one: see `_use_writer`.
        if self._process is not None:
            self._process.recorder.log(values, step, every=every, reduce=reduce)

    def define_metric(self, name: str, *, every: int, reduce: str = "mean") -> None:
        """Reduce the values of metrics over steps, wherever they are logged without an `every` of their own.

        Threads, and child processes, reduce apart. A forked child knows the definitions, a spawned one makes its own.

        Args:
            name: Of the metrics; `*`, `?` and `[...]` stand for other characters, as in `train/*`.
            every: Make one value of so many.
            reduce: `mean`, `min`, `max`, `sum` or `last`.

        Raises:
            UsageError: Such a metric has been logged before, or `every` or `reduce` cannot be used.
        """
        rule = Rule(every, cast("Reduce", reduce))
        if self._process is not None:
            self._process.recorder.define(name, rule)
        self._definitions.append((name, rule))

    @property
    def attempt(self) -> int:
        """Which attempt at the run this is, from 1."""
        return self.settings.attempt or 1

    def finish(self, state: str | None = None) -> None:
        """End the run and wait for delivery, for `finish_timeout` seconds at most.

        Returns as soon as everything is delivered, or is on disk and the receiver cannot be reached; the agent then goes
        on by itself. Safe to call twice. Ctrl-C leaves at once, and loses nothing. In a child process it ends that
        process's part only, and waits for nothing.

        Args:
            state: `finished`, `failed` or `preempted`. If None: preempted if the process was sent SIGTERM, else finished.

        Raises:
            UsageError: Another state.
        """
        if state not in (None, "finished", "failed", "preempted"):
            raise UsageError(f"finish: expected the state 'finished', 'failed' or 'preempted', got {state!r}")
        found, message = ending.outcome()
        if state is None:
            state = found if found == "preempted" else "finished"
        self._finish(state, message if state == found else "", self.settings.finish_timeout)

    def _finish(self, state: str, message: str, timeout: float) -> None:
        with self._lock:
            if self._finished:
                return
            self._finished = True
        _forget(self)
        self.__dict__.pop("log", None)
        if self._process is not None and self._process.is_this:
            self._process.finish(State[state.upper()], message, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failure = "" if kind is None else ending.describe_exception(kind, error)
        state, message = ending.outcome()
        if state != "preempted":
            state, message = ("failed", failure) if failure else ("finished", "")
        self._finish(state, message, self.settings.finish_timeout)

    def __reduce__(self) -> tuple[Callable[..., "Run"], tuple[Any, ...]]:
        """Sent to another process, a run becomes a process of its own there. Secrets are not sent."""
        identity = self._identity
        parent = self._parent or (self._process.id if self._process is not None else None)
        return _join, (identity.id, identity.name, identity.config, identity.settings.to_json(), parent)

    def __repr__(self) -> str:
        return f"<tensormeter.Run {self.project}/{self.id} {self.name!r}>"

    def _begin(self) -> None:
        """Take part from now on; or, if the machine refuses, warn."""
        if self.settings.mode == "disabled":
            return
        try:
            self._process = RunProcess(
                self._identity,
                parent=self._parent,
                resume=self._resume,
                on_writer=self._use_writer,
                on_fork=self._log_after_fork,
            )
            # Children, and whoever the run is sent to, are part of the same attempt.
            self.settings = self.settings.replace(attempt=self._process.attempt)
            self._identity = dataclasses.replace(self._identity, settings=self.settings)
            for name, rule in self._definitions:
                self._process.recorder.define(name, rule)
        except (OSError, RingError) as error:
            logger.warning("run %s records nothing: %s", self.id, error)

    def _use_writer(self, writer: Writer) -> None:
        # An attribute of the instance, because the extra call of a method that forwards would cost a fifth of the time.
        self.__dict__["log"] = writer

    def _after_fork(self) -> None:
        """In a forked child, before anything else runs there: locks may be held by threads that are not here."""
        self.__dict__.pop("log", None)
        self._lock = threading.RLock()

    def _log_after_fork(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        """The first call of `log` in a forked child; there is nothing to record if the run was finished before the fork."""
        with self._lock:
            before = self._process
            if before is not None and not before.is_this and self._finished:
                return
            if before is not None and not before.is_this:
                self._process = None
                if self.settings.after_fork == "ignore":
                    logger.warning("run %s: a forked child logs, which after_fork='ignore' says to ignore", self.id)
                else:
                    self._parent = self._parent or before.id
                    self._begin()
        self.log(values, step, every=every, reduce=reduce)


break_graph(Run.log)


def init(
    project: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    id: str | None = None,
    resume: bool = False,
    mode: str | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
) -> Run:
    """Begin a run.

    Takes some ten milliseconds and talks to no network. The run ends with `Run.finish`, with its `with` block, or when
    the interpreter exits; it counts as failed if an exception or another exit status than 0 ended it, as preempted if SIGTERM
    did, and as crashed if the process just vanished. In a notebook, it ends when another one begins.

    A run whose `id` comes again after its processes have ended is attempted again: nothing of the earlier attempt is deleted,
    and the steps that the later one repeats shadow those of the earlier one.

    Args:
        project: What the run belongs to.
        name: For people; the id if None.
        config: Hyperparameters and whatever else describes the run. What is not JSON is turned into a `str`.
        id: Of the run; give every rank the same. Random if None.
        resume: There was an attempt at this run before, on whatever machine. Needs an `id`.
        mode: `online`, `offline` or `disabled`.
        settings: A `Settings`, or a mapping of its fields. The arguments above take precedence over it.

    Raises:
        SettingsError: An argument, a setting or an environment variable cannot be used.
    """
    given = {"project": project, "name": name, "run_id": id, "mode": mode}
    resolved = _resolve(settings, {key: value for key, value in given.items() if value is not None})
    check_exporters(resolved.exporters)
    if resume and resolved.run_id is None:
        raise SettingsError(
            "resume: expected the id of the run to resume, got none; give id=, or set TENSORMETER_RUN_ID"
        )
    if _in_notebook():
        _finish_all()
    run_id = resolved.run_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    run = Run(RunIdentity(run_id, resolved.name or run_id, _as_json(config or {}), resolved), resume=resume)
    run._begin()
    _remember(run)
    return run


def log(
    values: Mapping[str, Any],
    step: int | None = None,
    *,
    every: int | None = None,
    reduce: str | None = None,
) -> None:
    """`Run.log` of the run that was begun last.

    Raises:
        UsageError: There is none.
    """
    if not _runs:
        raise UsageError("tensormeter.log: there is no run; call tensormeter.init() first")
    _runs[-1].log(values, step, every=every, reduce=reduce)


def finish() -> None:
    """`Run.finish` of the run that was begun last; does nothing if there is none."""
    if _runs:
        _runs[-1].finish()


_runs: list[Run] = []
"""Runs that are not finished, in the order in which they were begun."""


def _join(run_id: str, name: str, config: Mapping[str, Any], settings: Mapping[str, Any], parent: str | None) -> Run:
    """A run that has arrived here from another process; the same object however often it comes."""
    for run in _runs:
        if run.id == run_id:
            return run
    run = Run(RunIdentity(run_id, name, config, Settings.from_json(settings)), parent=parent)
    run._begin()
    _remember(run)
    return run


def _after_fork() -> None:
    for run in _runs:
        run._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _remember(run: Run) -> None:
    ending.watch(_finish_all)
    if run.settings.sigterm_timeout and run._process is not None:
        ending.take_sigterm(_on_sigterm)
    _runs.append(run)


def _forget(run: Run) -> None:
    if run in _runs:
        _runs.remove(run)
    if not _runs:
        ending.give_sigterm_back()


def _finish_all() -> None:
    state, message = ending.outcome()
    for run in reversed(_runs.copy()):  # a copy: a forked child's `finish` leaves its parent's runs where they are
        run._finish(state, message, run.settings.finish_timeout)


def _on_sigterm(last: bool) -> None:
    """Before the default action (`last`) runs are finished; before a handler they are not, because the script goes on."""
    for run in reversed(_runs.copy()):
        if run.settings.sigterm_timeout and run._process is not None:
            run._process.note_sigterm()
            if last:
                run._finish("preempted", "SIGTERM", min(run.settings.sigterm_timeout, run.settings.finish_timeout))


def _in_notebook() -> bool:
    """Whether cells are run one after the other, so that a run that is not finished was most likely forgotten."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


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
        values = dict(json.loads(json.dumps({str(key): value for key, value in config.items()}, default=str)))
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsError(f"config: cannot be written as JSON ({error})") from None
    if _depth(values) > _MAX_DEPTH:
        raise SettingsError(f"config: nested deeper than {_MAX_DEPTH} levels; flatten it")
    return values


def _depth(value: object) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(_depth, items), default=0)
