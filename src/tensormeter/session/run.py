"""The `Run` object that training scripts use.

Nothing here uses the network, and only `finish` waits for delivery. If the machine cannot record a run because there is
no space for the ring or no writable directory, the run logs a warning and records nothing.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Final, Self, cast

from tensormeter.conventions.labels import LONGEST_NAME, fit_label
from tensormeter.conventions.limits import ALERT_CHARACTERS, TITLE_CHARACTERS
from tensormeter.conventions.semconv import ALERT_EVENT
from tensormeter.errors import RingError
from tensormeter.logger import get_logger
from tensormeter.record.dynamo import break_graph
from tensormeter.record.media.artifact import Artifact
from tensormeter.record.media.item import EventContent
from tensormeter.record.model_watch import Watch, Watched
from tensormeter.record.phases.phases import Phases
from tensormeter.record.reduction.reduction import Reduce, Rule
from tensormeter.record.rows.lane import Writer
from tensormeter.record.warn_once import shown, text_of
from tensormeter.ring.format import State
from tensormeter.session import exit_hooks, open_runs
from tensormeter.session.announcement import page_address, print_end, print_start
from tensormeter.session.config.document import Changes
from tensormeter.session.config.run_documents import RunDocuments
from tensormeter.session.config.view import View
from tensormeter.session.leader import is_leader
from tensormeter.session.membership import RunIdentity
from tensormeter.session.run_process import RunProcess
from tensormeter.session.stated_outcome import stated_outcome
from tensormeter.settings import Settings

__all__ = ["Run", "before_finish"]

logger: Final = get_logger()

_ALERT_LEVELS: Final = {"INFO": "INFO", "WARN": "WARN", "WARNING": "WARN", "ERROR": "ERROR"}


class Run:
    """A run in progress, created by `init`.

    All methods are thread-safe. `log` can also be called from a signal handler.

    Child processes can log to the run. A forked child (for example, a DataLoader worker) joins the run on its first
    `log` call, unless the setting `after_fork` is `"ignore"`. A spawned child joins when it unpickles the run. Only the
    process that called `init` determines the run's final state.

    Attributes:
        id: ID of the run, unique within its project and the same on every rank.
        name: Display name of the run.
        project: Name of the run's project.
        config: Recorded configuration: a mapping with attribute access, which the script may change. Secrets are shown as `***`
            (see the setting `mask_config`).
        summary: Results that the script has stated, such as ``run.summary["best_accuracy"] = 0.9``: a mapping with
            attribute access. Values are numbers, booleans or strings. The server shows them in the run's summary, where
            they take precedence over the statistics of the metric of this name.
        settings: Settings of the run.
    """

    def __init__(self, identity: RunIdentity, *, parent: str | None = None) -> None:
        """Create a run without starting it. Call `init` instead."""
        self.id = identity.id
        self.name = identity.name
        self.project = identity.settings.project
        self.settings = identity.settings
        self._documents = RunDocuments(
            identity.id,
            identity.config,
            self._change,
            masks=identity.settings.mask_config,
            warns=identity.settings.mode != "disabled",
        )
        self._identity = replace(identity, config=self._documents.config.values)
        self._parent = parent
        self._process: RunProcess | None = None
        self._finished = False
        self._definitions: list[tuple[str, Rule]] = []
        self._watches: list[Watch] = []
        self._phases: Phases | None = None
        self._lock = threading.RLock()  # reentrant, because a signal handler may finish the run

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        """Record one row of metrics, and media such as images and texts.

        The call returns immediately: it does no device synchronization, and never waits for a lock that another thread
        holds during I/O. For numbers, it does no I/O and no encoding. Media are copied to a file next to the ring, and
        the agent encodes them; only Matplotlib figures are rendered by the call, and arrays that become distributions
        are counted by it. The call does not raise if `values` contains invalid values or if delivery fails. Values that
        cannot be recorded are counted, with one warning per key that names what to log instead.

        Args:
            values: Values by name. `docs/logging.md` lists all types:

                - Nested mappings: ``{"train": {"loss": 1}}`` is recorded as `train/loss`.
                - Numbers: Numbers, NumPy scalars, and one-element arrays and CPU tensors are read immediately.
                  One-element device tensors and JAX arrays are read in stream order, without waiting for the device.
                  Other objects need a method `__tensormeter_snapshot__()`. It returns a value of one of these types,
                  or a callable that returns None until the number is available. NaN and infinities are valid. Integers
                  are exact up to 64 bits, or up to 2**53 on a device. None is ignored and counted.
                - Distributions: `Histogram`, and arrays, tensors and lists of several numbers.
                - Media: strings, PIL images, Matplotlib and Plotly figures, data frames, lists and batches of images,
                  the bytes of an image, audio or video file, and `Text`, `Image`, `Video`, `Audio`, `Html` and `Table`.
                  A string of up to 256 characters that is logged again without a change is stored once, with its steps.
            step: Step of the row: any 64-bit integer, in any order. Default: one more than the step of the last row.
            every: Number of values of a metric to reduce to one. Device values are reduced on the device. The result is
                recorded on every `every`-th call that contains the metric. When the run finishes, a partial reduction
                is recorded. See `define_metric`.
            reduce: Reduction to use with `every`: `mean` (default), `min`, `max`, `sum` or `last`. All except `last`
                propagate NaN. For `Histogram`s, `mean` and `sum` merge all values into one distribution; `min` and
                `max` are not supported.
        """
        # The generated instance attribute `log` shadows this method; see `_use_writer`.
        if self._process is not None:
            self._process.recorder.log(values, step, every=every, reduce=reduce)

    def define_metric(
        self,
        name: str,
        *,
        every: int | None = None,
        reduce: str = "mean",
        summary: str | None = None,
        step_metric: str | None = None,
    ) -> None:
        """Define how metrics are reduced, summarized and drawn.

        Each thread and each child process reduces its own values. A forked child inherits the definitions; a spawned
        child must call `define_metric` itself.

        Args:
            name: Metric name, or a pattern with `*`, `?` and `[...]`, such as `train/*`. If several patterns match a metric,
                the latest one that defines a property applies.
            every: Number of values to reduce to one in `log` calls without `every`. Default: no reduction.
            reduce: Reduction to use with `every`: `mean`, `min`, `max`, `sum` or `last`.
            summary: Statistic that represents the metric in the run's summary, in tables and in filters: `min`, `max`,
                `mean`, `last` (default), or `none`.
            step_metric: Name of the metric that charts use as the x axis, such as `epoch`. A point's x is the latest value
                of that metric at or before the point's step.

        Raises:
            UsageError: A matching metric has already been logged and `every` is given, or an argument is invalid.
        """
        self._documents.define(name, summary, step_metric)
        if every is not None:
            rule = Rule(every, cast("Reduce", reduce))
            if self._process is not None:
                self._process.recorder.define(name, rule)
            self._definitions.append((name, rule))

    @property
    def config(self) -> View:
        return View(self._documents.config)

    @config.setter
    def config(self, values: Any) -> None:
        """Add values, like `run.config.update`. Assigning `run.config |= values` also does this."""
        if not isinstance(values, View):
            self._documents.config.merge((), values)

    @property
    def summary(self) -> View:
        return View(self._documents.summary)

    @summary.setter
    def summary(self, values: Any) -> None:
        if not isinstance(values, View):
            self._documents.summary.merge((), values)

    def update_config(self, values: Any) -> None:
        """Add values to the run's configuration that are known only after `init`, such as the number of parameters.

        This is the same as `run.config.update`. The call returns immediately and never raises. Nested objects are merged. Use
        `log` for values that change during training. If the configuration exceeds 1 MiB as JSON, its largest values are
        omitted, and a warning names them. The server shows the configuration of the process that changed it last, so
        call this method on all ranks or on exactly one. A rank that only starts later does not undo the change.

        Args:
            values: Values to add or replace, by name. They are converted and masked like the `config` of `init`.
        """
        self._documents.config.merge((), values)

    @property
    def url(self) -> str | None:
        """Address of the run's page, or None if the run has no experiment server as a destination."""
        return page_address(self.settings, self.id) if self.settings.mode != "disabled" else None

    @property
    def group(self) -> str:
        """Name of the run's group, or "" if it has none."""
        return self.settings.group

    @property
    def job_type(self) -> str:
        """Kind of work that the run does, or "" if none was given."""
        return self.settings.job_type

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags that the run was started with."""
        return self.settings.tags

    @property
    def notes(self) -> str:
        """Notes that the run was started with."""
        return self.settings.notes

    def as_current(self) -> AbstractContextManager[None]:
        """Return a context manager that makes this the current run of the thread or task: ``with run.as_current(): ...``.

        In the block, `tensormeter.log` and the other functions of the package act on this run. Threads that start in the
        block are not affected.
        """
        return open_runs.as_current(self)

    @property
    def finished(self) -> bool:
        """Whether `finish` was called, in this process."""
        return self._finished

    @property
    def attempt(self) -> int:
        """Number of this attempt at the run, as counted on this machine, from 1.

        `init` does not wait for the network. If this machine has no record of earlier attempts, the agent requests the
        number from the server, and corrects the number in the data before delivery. This property does not change.
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
        """Log norms and distributions of a model's gradients or parameters every `every` optimizer steps.

        Norms and distributions are computed on the model's device just before the optimizer step, without waiting for
        the device. The metrics are named `gradient_norm`, `gradient_norm/PARAMETER` and `gradients/PARAMETER`; for
        parameters, `parameter` replaces `gradient`. Each row has the step that the next `log` call without a step will use.
        Parameters without a gradient are omitted. Each rank logs its own shard of a sharded parameter. Gradients are
        logged as the optimizer receives them: accumulated, clipped and unscaled. The exception is a fused optimizer
        under a `GradScaler`, which unscales the gradients itself. Norms and distributions that cannot be computed, such
        as those of sparse tensors, are counted as lost, and cause one warning per name.

        Watching neither changes the model nor keeps it alive. It continues until `unwatch` is called or the run
        finishes.

        Args:
            model: A `torch.nn.Module`, which may be compiled or wrapped. A second call for the same model replaces its
                watch.
            log: Values to log: `gradients`, `parameters` or `all`.
            every: Number of optimizer steps between two rows. The first row is logged at the first optimizer step.
            norms: Whether to log the Euclidean norms of the whole model and of each parameter.
            histograms: Whether to log a distribution for each parameter.

        Returns:
            The new watch. If the training loop does not use a `torch.optim.Optimizer`, call the watch's `log` after
            each backward pass.

        Raises:
            UsageError: An argument is invalid.
        """
        watch = Watch(model, self._log_at_next_step, log=log, every=every, norms=norms, histograms=histograms)
        self.unwatch(model)
        if not self._finished and self._process is not None:
            watch.start()
            self._watches.append(watch)
        return watch

    def alert(self, title: str, text: str = "", level: str = "INFO") -> None:
        """Record an alert, which appears on the run's page and in every destination that receives log records.

        The alert is an OTLP log record with the step of the last row. Like `log`, this call returns immediately and
        does not raise if delivery fails.

        Args:
            title: Title, truncated to 1,024 characters.
            text: Description, truncated to 65,536 characters.
            level: Severity of the alert: `INFO`, `WARN` or `ERROR`, in upper or lower case. Another value becomes `INFO` with a
                warning.
        """
        known = _ALERT_LEVELS.get(text_of(getattr(level, "name", level)).upper())  # W&B's levels are members of an Enum
        if known is None:
            logger.warning("alert: expected the level INFO, WARN or ERROR, got %s; recording INFO", shown(level))
        if self._finished:
            logger.warning(
                "run %s has finished, so the alert %s was ignored; send it before finish()", self.id, shown(title)
            )
        elif (process := self._here()) is not None:
            body = {
                "title": _cut(text_of(title), TITLE_CHARACTERS),
                "text": _cut(text_of(text), ALERT_CHARACTERS),
                "level": known or "INFO",
            }
            process.recorder.alert(EventContent(ALERT_EVENT, body))

    def log_artifact(
        self,
        path_or_uri: Any,
        name: str | None = None,
        type: str = "model",
        step: int | None = None,
        aliases: Iterable[str] | str = (),
    ) -> None:
        """Record where a file or folder is, such as a checkpoint. The file itself stays where it is.

        The call returns immediately and never raises: it does not read the file. The agent determines the size and computes
        a SHA-256 digest, at low priority and at most 100 MiB per second. A file that does not exist, or that changes
        meanwhile, is recorded without a digest, and so is an address. Passwords and tokens in addresses are masked.

        Args:
            path_or_uri: Path of a file or folder, or an address such as `s3://bucket/model.pt`.
            name: Name of the artifact, the same for each version of it. Default: the last part of the path or address.
            type: Type of the artifact, such as `model` or `dataset`.
            step: Step at which charts mark the artifact. Default: the step of the last row.
            aliases: Aliases of this version, such as `best`.
        """
        artifact = Artifact(path_or_uri, name, type, aliases)
        if self._finished:
            logger.warning(
                "run %s has finished, so log_artifact(%s) was ignored; call it before finish()",
                self.id,
                shown(artifact.shown),
            )
        elif (process := self._here()) is not None:
            process.recorder.artifact(artifact, step)

    def unwatch(self, model: Any = None) -> None:
        """Stop watching a model, or all models if `model` is None."""
        for watch in self._watches.copy():
            if model is None or watch.is_of(model):
                self._watches.remove(watch)
                watch.stop()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that times part of a training step: ``with run.phase("model_forward"): ...``.

        Durations are recorded in seconds as the gauge `tensormeter.phase.duration`. The attribute `tensormeter.phase`
        is the phase's name, and `tensormeter.clock` is one of:

        - `host`: time on the host.
        - `device`, if the process uses CUDA: time between two CUDA events, one at the start and one at the end of the
          phase, each on the stream that is current then.
        - `lag`, if the process uses CUDA: estimated lag of the device behind the host at the start of the phase.

        Nothing waits for the device, so device times are recorded two steps later. Phases can be nested, and each
        thread has its own phases. A forked child records phases only after its first `log` call.

        Args:
            name: Name of the phase, such as `data_loading` (which counts as waiting for data), `model_forward`,
                `model_backward`, `optimizer_update` or `checkpoint_save`. Use few names, because each one creates a
                time series.

        Raises:
            UsageError: `name` is not a string or is empty.
        """
        return self._phases.phase(name) if self._phases is not None else nullcontext()

    def step(self, step: int | None = None, *, items: float | None = None) -> AbstractContextManager[None]:
        """Return a context manager that times a training step: ``with run.step(items=len(batch)): ...``.

        When the step ends, one row records its phases, `tensormeter.step.duration` in seconds (with the attribute
        `tensormeter.clock`, see `phase`), `tensormeter.step.throughput` in items per second, and
        `tensormeter.step.data_loading.share` from 0 to 1. Throughput and share cover the step and the time since the
        previous step. The time between steps counts as waiting for data, except for phases with a name other than
        `data_loading`.

        Args:
            step: Step of the row. Default: the step of the last row logged within the block, or the next step if no row
                was logged.
            items: Number of items processed in the step, such as the batch size.

        Raises:
            UsageError: An argument is invalid, or another step is already open on this thread. The latter error is
                raised on entering the block.
        """
        return self._phases.step(step, items) if self._phases is not None else nullcontext()

    def finish(
        self, state: str | int | None = None, *, exit_code: int | None = None, timeout: float | None = None
    ) -> None:
        """End the run, and wait up to `finish_timeout` seconds for delivery.

        The wait ends when all data is delivered, or when all data is on disk but the receiver is unreachable. In the
        latter case, the agent continues delivery in the background. Ctrl-C ends the wait immediately, without losing
        data. A second call does nothing. In a child process, `finish` ends only the child's part of the run and does
        not wait. The call never raises because of its arguments: invalid ones are ignored with a warning.

        Args:
            state: Final state of the run: `finished`, `failed` or `preempted`. Default: `preempted` if the process
                received SIGTERM, otherwise `finished`. An integer counts as `exit_code`.
            exit_code: Exit status of the program: 0 means `finished`, any other number `failed`.
            timeout: Maximum time to wait in seconds. Default: the setting `finish_timeout`.
        """
        if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
            logger.warning("finish: ignored the timeout %s; pass seconds as a number", shown(timeout))
            timeout = None
        self._end(stated_outcome(state, exit_code), self.settings.finish_timeout if timeout is None else timeout)

    def _end(self, outcome: exit_hooks.Outcome, timeout: float) -> None:
        """End the run with a known outcome, and wait for delivery like `finish`.

        Args:
            outcome: Final state of the run, and its cause.
            timeout: Maximum time to wait in seconds.
        """
        if not self._finished:
            for prepare in before_finish:
                prepare(self, outcome.state)
        process = self._process if self._process is not None and self._process.is_this else None
        # When one rank fails, the launcher sends SIGTERM to the other ranks, which may be failing at the same moment.
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
                process.close(State[outcome.state.upper()], outcome.failure)
            open_runs.remove(self)
        if process is not None:
            delivery = process.finish(timeout)
            if delivery and self._prints:
                print_end(self.settings, self.id, self.name, outcome.state, delivery)

    @property
    def _next_step(self) -> int:
        """Step of the next row if its log call does not specify a step (see `Recorder.next_step`)."""
        return self._process.recorder.next_step if self._process is not None else 0

    @property
    def _prints(self) -> bool:
        """Whether this process prints where the run is. One process of a run does."""
        return self._parent is None and not self.settings.quiet and is_leader(self.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failure = exit_hooks.Failure() if kind is None else exit_hooks.describe_failure(kind, error)
        outcome = exit_hooks.outcome()
        if outcome.state != "preempted":
            outcome = exit_hooks.Outcome("failed", failure) if failure.message else exit_hooks.Outcome("finished")
        self._end(outcome, self.settings.finish_timeout)

    def __reduce__(self) -> tuple[Callable[..., "Run"], tuple[Any, ...]]:
        """Pickle the run without its secrets. A process that unpickles it joins the run."""
        identity = self._identity
        parent = self._parent or (self._process.id if self._process is not None else None)
        values = {field.name: getattr(identity, field.name) for field in fields(identity)}
        return _join, (values | {"settings": identity.settings.to_json()}, parent)

    def __repr__(self) -> str:
        return f"<tensormeter.Run {self.project}/{self.id} {self.name!r}>"

    def _begin(self, forked_from: RunProcess | None = None) -> None:
        """Start recording, or warn if the machine cannot record. See `RunProcess` for `forked_from`."""
        if self.settings.mode == "disabled":
            return
        try:
            self._process = RunProcess(
                self._identity,
                parent=self._parent,
                forked_from=forked_from,
                on_writer=self._use_writer,
                on_fork=self._log_after_fork,
                on_text=self._documents.note_text,
            )
            # Forked children and processes that unpickle the run belong to the same attempt.
            self.settings = self.settings.replace(attempt=self._process.attempt)
            self._identity = dataclasses.replace(self._identity, settings=self.settings, basis=self._process.basis)
            self._report_left_out(self._process)
            recorder = self._process.recorder
            for name, rule in self._definitions:
                recorder.define(name, rule)
            self._phases = Phases(recorder.gauge_row, recorder.write_gauges, lambda: recorder.next_step)
            if self._prints:
                print_start(self.settings, self.id, self.name)
        except (OSError, RingError) as error:
            logger.warning(
                "run %s records nothing, because it cannot be stored on this machine: %s; run `tensormeter doctor`",
                self.id,
                error,
            )

    def _change(self, document: str, change: Callable[[], Changes]) -> None:
        """Change one of the run's documents, and record the change."""
        with self._lock:
            if self._finished:
                logger.warning(
                    "run %s has finished, so its %s was not changed; change it before finish()", self.id, document
                )
                return
            process = self._here()
            changes = change()
            self._identity = replace(self._identity, config=self._documents.config.values)
            if process is not None:
                process.write_document(document, changes, self._documents.values(document))
                self._report_left_out(process)

    def _report_left_out(self, process: RunProcess) -> None:
        for document, values in self._documents.take_omitted().items():
            # Children and other ranks have the same configuration, so only one process reports.
            if self._parent is None and is_leader(self.settings):
                process.leave_out(document, values)

    @property
    def _sigterm_word(self) -> memoryview | None:
        """See `RunProcess.sigterm_word`. None if this run records nothing, or is not to be ended by SIGTERM."""
        return self._process.sigterm_word if self.settings.sigterm_timeout and self._process is not None else None

    def _here(self) -> RunProcess | None:
        """Return this process's `RunProcess`, or None if nothing is recorded. A forked child joins the run first."""
        if self._process is not None and not self._process.is_this:
            self._join_after_fork()
        return self._joined()

    def _joined(self) -> RunProcess | None:
        """Return this process's `RunProcess`, or None. Unlike `_here`, this does not join the run in a forked child."""
        return self._process if self._process is not None and self._process.is_this else None

    def _describe(self, resource: Mapping[str, Any]) -> None:
        """Add resource attributes to all data recorded from now on."""
        merged = {**self._identity.resource, **resource}
        if merged == self._identity.resource:
            return
        self._identity = replace(self._identity, resource=merged)
        if self._process is not None and self._process.is_this:
            self._process.describe(self._identity)

    def _rename(self, name: str) -> None:
        """Change the display name. The server shows it once further data has arrived."""
        self.name = fit_label(name, LONGEST_NAME) or self.id
        self._identity = replace(self._identity, name=self.name)
        if self._process is not None and self._process.is_this and not self._finished:
            self._process.describe(self._identity)

    def _use_writer(self, writer: Writer) -> None:
        # An instance attribute, because a method that forwards calls to the writer would make them 20% slower.
        self.__dict__["log"] = writer

    def _log_at_next_step(self, values: Mapping[str, Any]) -> None:
        """Record a row with the step that the next `log` call without a step will use."""
        if self._process is not None:
            self._process.recorder.log_at_next_step(values)

    def _after_fork(self) -> None:
        """Reset the run in a forked child, before any other code uses it. The parent's threads may hold its locks."""
        self.__dict__.pop("log", None)
        self._phases = None  # writes to the parent's ring; the first `log` call creates a new object
        self._lock = threading.RLock()

    def _log_after_fork(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        """Join the run on the first `log` call in a forked child, unless the run finished before the fork."""
        self._join_after_fork()
        if self._process is None or self._process.is_this:
            self.log(values, step, every=every, reduce=reduce)

    def _join_after_fork(self) -> None:
        with self._lock:
            parent = self._process
            if parent is None or parent.is_this or self._finished:
                return
            self._process = None
            if self.settings.after_fork == "ignore":
                logger.warning(
                    "run %s: ignored log() in a forked child process; set after_fork='record' to record it", self.id
                )
            else:
                self._parent = self._parent or parent.id
                self._begin(parent)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


break_graph(Run.log)


before_finish: Final[list[Callable[[Run, str], None]]] = []
"""Functions to call with a run and its final state before it finishes, for example to collect asynchronous instruments."""


def _join(identity: Mapping[str, Any], parent: str | None) -> Run:
    """Unpickle a run from another process and join it. Later calls return the same object."""
    for run in open_runs.all_open():
        if run.id == identity["id"]:
            return run
    settings = Settings.from_json(identity["settings"])
    run = Run(RunIdentity(**{**identity, "settings": settings}), parent=parent)
    run._begin()
    open_runs.add(run)
    return run
