"""Runs: what a training script holds.

Nothing in here talks to a network, and nothing but `finish` waits.
If the machine does not let a run be recorded (no space for the ring, no directory that can be written), the script is
warned and goes on with a run that records nothing.
"""

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, Self, cast

from tensormeter.conventions.fitting import LeftOut, fit
from tensormeter.conventions.limits import ALERT_CHARACTERS, CONFIG_BYTES, TITLE_CHARACTERS
from tensormeter.conventions.semconv import ALERT_EVENT, RANK
from tensormeter.errors import RingError, UsageError
from tensormeter.logger import get_logger
from tensormeter.record.dynamo import break_graph
from tensormeter.record.media.parcel import Parcel
from tensormeter.record.model_watch import Watch, Watched
from tensormeter.record.phases.phases import Phases
from tensormeter.record.reduction.reduction import Reduce, Rule
from tensormeter.record.rows.lane import Writer
from tensormeter.record.warn_once import shown, text_of
from tensormeter.redaction import environment_secrets, mask_config
from tensormeter.resource import describe_rank
from tensormeter.ring.format import State
from tensormeter.session import exit_hooks
from tensormeter.session.membership import RunIdentity
from tensormeter.session.run_config import as_json
from tensormeter.session.run_process import RunProcess
from tensormeter.settings import Settings

__all__ = ["Run", "before_finish", "finish_all", "latest_run", "open_runs", "remember"]

logger: Final = get_logger()

_MOST_NAMED: Final = 10
"""Names of masked entries in one warning, at most."""


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
        config: As given to `init` and `update_config`, as JSON values, and as it is recorded: secrets in it are `***` (see the
            setting `mask_config`). To be read only.
        settings: In force for this run.
    """

    def __init__(self, identity: RunIdentity, *, parent: str | None = None) -> None:
        """Use `init`."""
        self.id = identity.id
        self.name = identity.name
        self.project = identity.settings.project
        self.settings = identity.settings
        self._masked: set[str] = set()
        self._faults: set[str] = set()
        self._left_out: list[LeftOut] = []
        self._identity = replace(identity, config=self._fitting(self._without_secrets(identity.config)))
        self._parent = parent
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
            reduce: `mean` (if None), `min`, `max`, `sum` or `last`. NaN makes them NaN, `last` aside. Of `Histogram`s,
                `mean` and `sum` make one distribution of all values together, and `min` and `max` are refused.
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
    def config(self) -> Mapping[str, Any]:
        return MappingProxyType(self._identity.config)

    def update_config(self, values: Mapping[str, Any]) -> None:
        """Add to the run's configuration what `init` did not know yet: the number of parameters, say.

        Returns at once. Not for what changes with the steps. A configuration of more than 1 MiB as JSON loses its largest values,
        with a warning that names them. The run shows the configuration of the process that has told its own last, so call
        it on every rank, or on one alone.

        Args:
            values: As the `config` of `init`, and masked like it. They replace those of the same names.

        Raises:
            SettingsError: Not a mapping.
        """
        added = as_json(values, self._faults)
        with self._lock:
            if self._finished:
                logger.warning("update_config() after the run was finished: nothing is recorded")
                return
            process = self._here()
            config = as_json({**self._identity.config, **self._without_secrets(added)}, self._faults)
            self._identity = replace(self._identity, config=self._fitting(config))
            if process is not None:
                process.reconfigure(self._identity)
                self._report_left_out(process)

    @property
    def attempt(self) -> int:
        """Which attempt at the run this is, from 1, as far as this machine knows. `init` does not wait for a network: if this machine
        does not know the run's other attempts, the agent asks the server, and corrects the number before it delivers.
        """
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
            title: In a few words; cut after 1,024 characters.
            text: In more; cut after 65,536 characters.
            level: How bad it is.

        Raises:
            UsageError: Another level.
        """
        if not issubclass(type(level), str) or level not in ("INFO", "WARN", "ERROR"):
            raise UsageError(f"alert: expected a level of INFO, WARN, ERROR, got {shown(level)}")
        if self._process is not None and self._process.is_this:
            body = {
                "title": _cut(text_of(title), TITLE_CHARACTERS),
                "text": _cut(text_of(text), ALERT_CHARACTERS),
                "level": level,
            }
            self._process.recorder.alert(Parcel(ALERT_EVENT, body))

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
        if state is not None and not (issubclass(type(state), str) and state in ("finished", "failed", "preempted")):
            raise UsageError(f"finish: expected the state 'finished', 'failed' or 'preempted', got {shown(state)}")
        found, message = exit_hooks.outcome()
        if state is None:
            state = found if found == "preempted" else "finished"
        self._finish(
            state, message if state == found else "", self.settings.finish_timeout if timeout is None else timeout
        )

    def _finish(self, state: str, message: str, timeout: float) -> None:
        if not self._finished:
            for prepare in before_finish:
                prepare(self)
        process = self._process if self._process is not None and self._process.is_this else None
        # When one rank has failed, so do the others, and are sent SIGTERM at that moment.
        with exit_hooks.defer_sigterm():
            with self._lock:
                if self._finished:
                    return
                self._finished = True
            self.unwatch()
            if self._phases is not None:
                self._phases.flush()
                self._phases = None
            self.__dict__.pop("log", None)
            if process is not None:
                process.close(State[state.upper()], message)
            _forget(self)
        if process is not None:
            process.finish(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failure = "" if kind is None else exit_hooks.describe_exception(kind, error)
        state, message = exit_hooks.outcome()
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

    def _begin(self, forked_from: RunProcess | None = None) -> None:
        """Take part from now on; or, if the machine refuses, warn. `forked_from`: as for `RunProcess`."""
        if self.settings.mode == "disabled":
            return
        try:
            self._process = RunProcess(
                self._identity,
                parent=self._parent,
                forked_from=forked_from,
                on_writer=self._use_writer,
                on_fork=self._log_after_fork,
            )
            # Children, and whoever the run is sent to, are part of the same attempt.
            self.settings = self.settings.replace(attempt=self._process.attempt)
            self._identity = dataclasses.replace(self._identity, settings=self.settings, basis=self._process.basis)
            self._report_left_out(self._process)
            recorder = self._process.recorder
            for name, rule in self._definitions:
                recorder.define(name, rule)
            self._phases = Phases(recorder.gauge_row, recorder.write_gauges, lambda: recorder.next_step)
        except (OSError, RingError) as error:
            logger.warning("run %s records nothing: %s", self.id, error)

    def _without_secrets(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Mask secrets, and name what was masked in one warning."""
        if not self.settings.mask_config:
            return config
        masked, names = mask_config(config, environment_secrets(os.environ))
        new = [name for name in names if name not in self._masked]
        self._masked.update(new)
        if new and self.settings.mode != "disabled":
            logger.log(
                logging.INFO if describe_rank().get(RANK) else logging.WARNING,  # one rank is enough
                "run %s: config: %s %s recorded as ***, because %s like %s; rename what is none, or set "
                "TENSORMETER_MASK_CONFIG=false to record the configuration as it is",
                self.id,
                ", ".join(new[:_MOST_NAMED])
                + (f" and {len(new) - _MOST_NAMED} more" if len(new) > _MOST_NAMED else ""),
                *(("is", "it looks", "a secret") if len(new) == 1 else ("are", "they look", "secrets")),
            )
        return masked

    def _fitting(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The configuration without its largest values, if it is over the limit."""
        kept, left_out = fit(config, CONFIG_BYTES)
        self._left_out += left_out
        return kept if left_out else config

    def _report_left_out(self, process: RunProcess) -> None:
        left_out, self._left_out = self._left_out, []
        # A child has the configuration from its parent, and the other ranks have the same.
        if left_out and self._parent is None and not describe_rank().get(RANK):
            process.leave_out_of_config(left_out)

    def _here(self) -> RunProcess | None:
        """Return the run's process here; None if nothing is recorded. A forked child joins the run with its first call."""
        if self._process is not None and not self._process.is_this:
            self._take_part_after_fork()
        return self._taking_part()

    def _taking_part(self) -> RunProcess | None:
        """Return the run's process here, if there is one. A forked child does not join the run by this call."""
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
                    self._begin(before)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


break_graph(Run.log)


def latest_run() -> Run | None:
    """The run that was begun last, of those that are not finished."""
    return open_runs[-1] if open_runs else None


before_finish: Final[list[Callable[[Run], None]]] = []
"""Called when a run is about to finish: instruments have something to record yet."""

open_runs: list[Run] = []
"""Runs that are not finished, in the order in which they were begun."""


def _join(identity: Mapping[str, Any], parent: str | None) -> Run:
    """A run that has arrived here from another process; the same object however often it comes."""
    for run in open_runs:
        if run.id == identity["id"]:
            return run
    settings = Settings.from_json(identity["settings"])
    run = Run(RunIdentity(**{**identity, "settings": settings}), parent=parent)
    run._begin()
    remember(run)
    return run


def _after_fork() -> None:
    for run in open_runs:
        run._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def remember(run: Run) -> None:
    """A run has begun: finish it when the process ends."""
    exit_hooks.install(finish_all)
    if run.settings.sigterm_timeout and run._process is not None:
        exit_hooks.install_sigterm(_on_sigterm, run.settings.sigterm_timeout)
        exit_hooks.set_sigterm_word(run._process.sigterm_word)
    open_runs.append(run)


def _forget(run: Run) -> None:
    if run in open_runs:
        open_runs.remove(run)
        if run._process is not None:
            exit_hooks.clear_sigterm_word(run._process.sigterm_word)
    if not open_runs:
        exit_hooks.restore_sigterm()


def finish_all() -> None:
    """Finish what is not finished, the latest first, in the state in which the process ends."""
    state, message = exit_hooks.outcome()
    for run in reversed(open_runs.copy()):  # a copy: a forked child's `finish` leaves its parent's runs where they are
        run._finish(state, message, run.settings.finish_timeout)


def _on_sigterm(last: bool) -> None:
    """Before the default action (`last`) runs are finished; before a handler they are not, because the script goes on."""
    for run in reversed(open_runs.copy()):
        if run.settings.sigterm_timeout and run._process is not None:
            run._process.record_sigterm()
            if last:
                run._finish("preempted", "SIGTERM", min(run.settings.sigterm_timeout, run.settings.finish_timeout))
