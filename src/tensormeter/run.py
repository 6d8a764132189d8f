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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from tensormeter import ending
from tensormeter.errors import RingError, SettingsError, UsageError
from tensormeter.exporter import check_exporters
from tensormeter.process import RunIdentity, RunProcess
from tensormeter.record.compilation import break_graph
from tensormeter.record.lane import Writer
from tensormeter.record.media import Parcel
from tensormeter.record.phases import Phases
from tensormeter.record.reduction import Reduce, Rule
from tensormeter.record.watch import Watch, Watched
from tensormeter.ring import State
from tensormeter.settings import Settings

if TYPE_CHECKING:
    from tensormeter.record.deferred import DeferredLog

__all__ = ["Run", "deferred_log", "finish", "init", "log"]
__all__ = ["Run", "finish", "init", "latest_run", "log"]

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
        self._watches: list[Watch] = []
        self._phases: Phases | None = None
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
                now; or tensors on a device and JAX arrays with one element, whose value is taken in stream order, without
                waiting for it; or objects with a method `__tensormeter_snapshot__()`, which returns one of these, or a
                callable that returns the number later, and None until then.
                NaN and infinities are values. Integers are exact up to 64 bits, on a device up to 2**53.
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

    def watch(
        self,
        model: Any,
        log: Watched = "gradients",
        *,
        every: int = 100,
        norms: bool = True,
        histograms: bool = True,
    ) -> Watch:
        """Log norms and distributions of a model's gradients or parameters, every so many steps of its optimizer.

        They are computed where they are, just before the optimizer's step, without waiting for a device. The names are
        `gradient_norm`, `gradient_norm/PARAMETER` and `gradients/PARAMETER`, and the same with `parameter`. Rows have the step
        of the next row that is logged without one. Parameters without a gradient are left out; of parameters that are sharded
        over ranks each rank logs its part. Gradients are as the optimizer gets them: accumulated, clipped, unscaled (but by a
        fused optimizer under a `GradScaler`, which unscales them itself).

        The model is not changed, and not kept alive. It is watched until `unwatch`, or until the run finishes.

        Args:
            model: A `torch.nn.Module`, compiled or wrapped or not. It is watched anew if it is watched already.
            log: `gradients`, `parameters` or `all`.
            every: Steps from one row to the next; the first step has one.
            norms: Whether to log Euclidean norms, of the whole and by parameter.
            histograms: Whether to log distributions, by parameter.

        Returns:
            The watch. If no `torch.optim.Optimizer` makes the steps, call its `log` instead.

        Raises:
            UsageError: An argument cannot be used.
        """
        watch = Watch(model, self._log_beside, log=log, every=every, norms=norms, histograms=histograms)
        self.unwatch(model)
        if not self._finished and self._process is not None:
            watch.start()
            self._watches.append(watch)
        return watch

    def alert(self, title: str, text: str = "", level: Literal["INFO", "WARN", "ERROR"] = "INFO") -> None:
        """Tell whoever looks at the run. It arrives as an OTLP log record, at the last row's step. As silent as `log`.

        Args:
            title: In a few words.
            text: In more.
            level: How bad it is.

        Raises:
            UsageError: Another level.
        """
        if level not in ("INFO", "WARN", "ERROR"):
            raise UsageError(f"alert: expected a level of INFO, WARN, ERROR, got {level!r}")
        if self._process is not None and self._process.is_this:
            body = {"title": str(title), "text": str(text), "level": level}
            self._process.recorder.alert(Parcel("tensormeter.alert", body))

    def unwatch(self, model: Any = None) -> None:
        """Watch a model no more; all of them if None."""
        for watch in self._watches.copy():
            if model is None or watch.is_of(model):
                self._watches.remove(watch)
                watch.stop()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A part of a training step, as a context manager: ``with run.phase("model_forward"): ...``.

        Its durations become the gauge `tensormeter.phase.duration`, in seconds, with the attributes `tensormeter.phase` and
        `tensormeter.clock`: `host`, and if the process uses CUDA `device`, between two events on the streams that are current
        at its ends, and `lag`, what the device was behind the host at its beginning (estimated). Nothing waits: device times
        are recorded when two more steps have ended. Phases may nest; each thread has its own. A forked child has some from its
        first call of `log` on.

        Args:
            name: Such as `data_loading`, which counts as waiting for data, `model_forward`, `model_backward`,
                `optimizer_update`, `checkpoint_save`. Names should be few: each is a time series.

        Raises:
            UsageError: No name.
        """
        return self._phases.phase(name) if self._phases is not None else nullcontext()

    def step(self, step: int | None = None, *, items: float | None = None) -> AbstractContextManager[None]:
        """A training step, as a context manager: ``with run.step(items=len(batch)): ...``.

        When it ends, it is recorded in one row with its phases: `tensormeter.step.duration` in seconds (with the attribute
        `tensormeter.clock` as in `phase`), `tensormeter.step.throughput` in items a second, and
        `tensormeter.step.data_loading.share`, from 0 to 1. The latter two are about the step and the time since the one
        before. That time counts as waiting for data, as do phases named `data_loading`; other phases between steps do not.

        Args:
            step: Of the row. If None, that of the last row logged meanwhile, or else the next one.
            items: What was processed, such as the size of the batch.

        Raises:
            UsageError: An argument cannot be used; or, on entering, a step has not ended on this thread.
        """
        return self._phases.step(step, items) if self._phases is not None else nullcontext()

    def finish(self, state: str | None = None, *, timeout: float | None = None) -> None:
        """End the run and wait for delivery, for `finish_timeout` seconds at most.

        Returns as soon as everything is delivered, or is on disk and the receiver cannot be reached; the agent then goes
        on by itself. Safe to call twice. Ctrl-C leaves at once, and loses nothing. In a child process it ends that
        process's part only, and waits for nothing.

        Args:
            state: `finished`, `failed` or `preempted`. If None: preempted if the process was sent SIGTERM, else finished.
            timeout: Seconds to wait at most, instead of `finish_timeout`.

        Raises:
            UsageError: Another state.
        """
        if state not in (None, "finished", "failed", "preempted"):
            raise UsageError(f"finish: expected the state 'finished', 'failed' or 'preempted', got {state!r}")
        found, message = ending.outcome()
        if state is None:
            state = found if found == "preempted" else "finished"
        self._finish(
            state, message if state == found else "", self.settings.finish_timeout if timeout is None else timeout
        )

    def _finish(self, state: str, message: str, timeout: float) -> None:
        if not self._finished:
            for prepare in before_finish:
                prepare(self)
        with self._lock:
            if self._finished:
                return
            self._finished = True
        _forget(self)
        self.unwatch()
        if self._phases is not None:
            self._phases.flush()
            self._phases = None
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
        sent = {item.name: getattr(identity, item.name) for item in fields(identity)}
        return _join, (sent | {"settings": identity.settings.to_json()}, parent)

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
            recorder = self._process.recorder
            for name, rule in self._definitions:
                recorder.define(name, rule)
            self._phases = Phases(recorder.gauge_row, recorder.write_gauges, lambda: recorder.next_step)
        except (OSError, RingError) as error:
            logger.warning("run %s records nothing: %s", self.id, error)

    def _here(self) -> RunProcess | None:
        """This process's part in the run; None if nothing is recorded. A forked child takes part from its first call on."""
        if self._process is not None and not self._process.is_this:
            self._take_part_after_fork()
        return self._process if self._process is not None and self._process.is_this else None

    def _describe(self, resource: Mapping[str, Any]) -> None:
        """Add to the resource attributes of what is recorded from now on."""
        merged = {**self._identity.resource, **resource}
        if merged == self._identity.resource:
            return
        self._identity = replace(self._identity, resource=merged)
        if self._process is not None and self._process.is_this:
            self._process.describe(self._identity)

    def _use_writer(self, writer: Writer) -> None:
        # An attribute of the instance, because the extra call of a method that forwards would cost a fifth of the time.
        self.__dict__["log"] = writer

    def _log_beside(self, values: Mapping[str, Any]) -> None:
        """Record a row that leaves its step to the next one."""
        if self._process is not None:
            self._process.recorder.log_beside(values)

    def _after_fork(self) -> None:
        """In a forked child, before anything else runs there: locks may be held by threads that are not here."""
        self.__dict__.pop("log", None)
        self._phases = None  # they would write to the parent's ring; the first call of `log` makes others
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
        self._take_part_after_fork()
        if self._process is None or self._process.is_this:
            self.log(values, step, every=every, reduce=reduce)

    def _take_part_after_fork(self) -> None:
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
    check_exporters([*resolved.exporters, *(option.partition(".")[0] for option in resolved.exporter_options)])
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


def deferred_log(
    run: Run,
    names: Sequence[str],
    *,
    capacity: int = 1024,
    device: Any = None,
    first_step: int = 0,
) -> "DeferredLog":
    """Record from inside functions compiled by `torch.compile`, also with `fullgraph=True`, and from inside CUDA graphs.

    The result's `write({name: tensor})` belongs into the graph, and is a few tensor operations there: no graph break, and
    each replay of a CUDA graph writes a row. Rows are fetched by later `run.log` calls of this thread (four times a second),
    by `flush()`, and by `run.finish`, without waiting for the device. They are recorded in the order of the writes, with the
    time at which they are fetched. If more than `capacity` are written in between, the oldest are lost, and counted.

    Every execution of the write is a row, those of warm-ups and of activation checkpointing's recomputation included.
    Integers are exact up to 2**53. While there is such an object, each `run.log` takes a few microseconds.

    Args:
        run: From `init`, in this process.
        names: Of the metrics of a row.
        capacity: Rows that are kept on the device, which takes 8 bytes a value there, and as many on the host.
        device: Where the values are, as torch names it; the current CUDA device if None and there is one, else the CPU.
        first_step: Step of the first row written; each further one is one more.

    Raises:
        UsageError: An argument cannot be used, or memory for the copies cannot be page-locked.
    """
    from tensormeter.record.deferred import DeferredLog

    return DeferredLog(
        run._process.recorder if run._process is not None else None,
        names,
        capacity=capacity,
        device=device,
        first_step=first_step,
    )


def latest_run() -> Run | None:
    """The run that was begun last, of those that are not finished."""
    return _runs[-1] if _runs else None


before_finish: Final[list[Callable[[Run], None]]] = []
"""Called when a run is about to finish: instruments have something to record yet."""

_runs: list[Run] = []
"""Runs that are not finished, in the order in which they were begun."""


def _join(identity: Mapping[str, Any], parent: str | None) -> Run:
    """A run that has arrived here from another process; the same object however often it comes."""
    for run in _runs:
        if run.id == identity["id"]:
            return run
    settings = Settings.from_json(identity["settings"])
    run = Run(RunIdentity(**{**identity, "settings": settings}), parent=parent)
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
