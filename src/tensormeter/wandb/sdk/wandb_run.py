"""The object that `init` returns: W&B's run on top of a `tensormeter.Run`."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import tensormeter
from tensormeter.errors import UsageError
from tensormeter.record.dynamo import break_graph
from tensormeter.record.media.item import Media
from tensormeter.session.run import Run as RecordedRun
from tensormeter.wandb import current
from tensormeter.wandb.artifacts import Artifact, record_artifact, save_files
from tensormeter.wandb.flat_rows import NOTHING
from tensormeter.wandb.notices import refuse, warn_ignored, warn_once
from tensormeter.wandb.run_facts import RunFacts
from tensormeter.wandb.sdk.wandb_config import Config
from tensormeter.wandb.sdk.wandb_metric import Metric, definition
from tensormeter.wandb.sdk.wandb_settings import Settings
from tensormeter.wandb.sdk.wandb_summary import Summary

__all__ = ["AdoptedRun", "Run", "RunStatus"]

_ALERT_WAIT: Final = 60.0
"""Seconds within which a second alert with the same title is not recorded, by default, as in W&B."""


class RunStatus(NamedTuple):
    """The status of a run. The agent delivers data in the background, so this process has nothing to sync."""

    sync_items_total: int = 0
    sync_items_pending: int = 0
    sync_time: None = None


class Run(RunFacts):
    """A run in progress, created by `init`.

    `SteppedLog` describes the steps of rows, and `RunFacts` the attributes.

    Attributes:
        config: Configuration of the run.
        summary: Summary of the run.
        settings: Settings that `init` received.
    """

    def __init__(
        self,
        recorded: RecordedRun,
        config: Mapping[str, Any] | None = None,
        *,
        entity: str = "",
        folder: str | Path | None = None,
        settings: Settings | None = None,
        first_step: int | None = None,
        continues_config: bool = False,
    ) -> None:
        """Wrap a started run. Call `init` instead.

        Args:
            recorded: Run that records the data.
            config: Configuration that the run was started with.
            entity: Value of `Run.entity`.
            folder: Folder for `Run.dir`. Default: the working folder.
            settings: Value of `Run.settings`.
            first_step: First step. Default: 0, or the step after the last one of earlier attempts.
            continues_config: Whether a resumed run has the configuration of earlier attempts.
        """
        super().__init__(recorded, entity, folder, first_step)
        self._config = Config(
            config, self._record_config, self._earlier_config if self.resumed and not config else None
        )
        self._summary = Summary(self._latest, self._record_summary)
        self._alerts: dict[str, float] = {}
        self._is_preempting = False
        self._resume_file: Path | None = None
        self.settings = settings or Settings()

    def before_finish(self, state: str) -> None:
        """Record the values that wait, and forget that `resume="auto"` was to continue this run.

        `finish`, `tensormeter.finish` and the end of the process call this with the final state.
        """
        self._flush()
        if self._resume_file is not None and state == "finished" and self.pid == os.getpid():
            try:
                self._resume_file.unlink(missing_ok=True)
            except OSError as error:
                warn_once(
                    self._resume_file,
                    "wandb.init(resume='auto') will continue run %s, although it has finished: cannot delete %s: %s",
                    *(self.id, self._resume_file, error.strerror),
                )

    def define_metric(
        self,
        name: Any,
        step_metric: Any = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        goal: str | None = None,
        overwrite: bool | None = None,
        **named: Any,
    ) -> Metric:
        """Define the x axis and the summary of a metric.

        Args:
            name: Name of the metric, or a pattern that ends with `*`.
            step_metric: Name of the metric that charts use as the x axis.
            step_sync: Ignored: a point's x is always the latest value of the step metric.
            hidden: Ignored with a warning.
            summary: `min`, `max`, `mean`, `last`, `best` (with `goal`) or `none`, or several between commas, the first of them.
            goal: `minimize` or `maximize`.
            overwrite: Ignored: the latest definition of each property applies.
            named: Unknown arguments, which cause a warning.
        """
        if hidden:
            warn_ignored("define_metric(hidden=)", "the page hides no charts by name")
        metric = Metric(str(name), step_metric, summary, goal)
        pattern, statistic, axis = definition(metric)
        try:
            self._recorded.define_metric(pattern, summary=statistic, step_metric=axis)
        except UsageError as error:
            warn_once(("define_metric", pattern), "%s", error)
        return metric

    @property
    def config(self) -> Config:
        return self._config

    @config.setter
    def config(self, values: Any) -> None:
        if values is not self._config:
            self._config.update(values)

    @property
    def summary(self) -> Summary:
        return self._summary

    @summary.setter
    def summary(self, values: Any) -> None:
        if values is not self._summary:
            self._summary.update(values)

    def status(self) -> RunStatus:
        return RunStatus()

    def alert(self, title: str, text: str = "", level: Any = None, wait_duration: Any = None) -> None:
        """Record an alert, unless one with the same title was recorded recently.

        Args:
            title: Title.
            text: Description.
            level: `INFO` (default), `WARN` or `ERROR`, as text or `AlertLevel`.
            wait_duration: Seconds or `timedelta` within which alerts with the same title are not recorded. Default: 60.
        """
        wait = _ALERT_WAIT if wait_duration is None else wait_duration
        seconds = wait.total_seconds() if hasattr(wait, "total_seconds") else float(wait)
        now = time.monotonic()
        with self._lock:
            if now - self._alerts.get(str(title), float("-inf")) < seconds:
                return
            self._alerts[str(title)] = now
        self._recorded.alert(title, text, "INFO" if level is None else level)

    def watch(
        self,
        models: Any,
        criterion: Any = None,
        log: str | None = "gradients",
        log_freq: int = 1000,
        idx: int | None = None,
        log_graph: bool = False,
    ) -> None:
        """Log norms and distributions of gradients or parameters every `log_freq` optimizer steps (see `tensormeter.watch`).

        Args:
            models: A model, or several.
            criterion: Ignored.
            log: `gradients`, `parameters`, `all`, or None for nothing.
            log_freq: Number of optimizer steps between two rows.
            idx: Ignored.
            log_graph: Ignored with a warning.
        """
        if log_graph:
            warn_ignored("wandb.watch(log_graph=)", "graphs of models are not recorded")
        if log is None:
            return
        for model in models if isinstance(models, list | tuple) else [models]:
            try:
                self._recorded.watch(model, log, every=log_freq)  # type: ignore[arg-type]
            except UsageError as error:
                warn_once(("watch", str(error)), "wandb.watch: %s", error)

    def unwatch(self, models: Any = None) -> None:
        """Stop watching some models. Default: all."""
        for model in models if isinstance(models, list | tuple) else [models]:
            self._recorded.unwatch(model)

    def log_artifact(
        self,
        artifact_or_path: Any,
        name: str | None = None,
        type: str | None = None,
        aliases: Any = None,
        tags: Any = None,
    ) -> Artifact:
        """Record where an artifact's files are, with their sizes and digests. The files stay where they are.

        Args:
            artifact_or_path: `Artifact`, or path of a file or folder, or an address.
            name: Name of the artifact. Default: the artifact's name, or the last part of the path.
            type: Type of the artifact. Default: the artifact's type, or "unspecified".
            aliases: Names for this version.
            tags: Recorded as further aliases.
        """
        return record_artifact(self, artifact_or_path, name, type, [*_list(aliases), *_list(tags)])

    upsert_artifact = finish_artifact = log_artifact

    def log_model(self, path: Any, name: str | None = None, aliases: Any = None) -> Artifact:
        """Record where the files of a model are. See `log_artifact`."""
        return self.log_artifact(path, name or f"run-{self.id}-{os.path.basename(os.fspath(path))}", "model", aliases)

    def save(
        self, glob_str: Any = None, base_path: Any = None, policy: str = "live", glob: bool = True
    ) -> list[str] | bool:
        """Record where files are, with their sizes and digests. They stay where they are.

        Args:
            glob_str: Path or pattern of files. Without it, the call does nothing and returns True.
            base_path: Folder to which the names of the files are relative. Default: the working folder.
            policy: Ignored: each file is described soon after the call.
            glob: Whether `*`, `?` and `[...]` in `glob_str` form a pattern.

        Returns:
            Paths of the files.
        """
        return True if glob_str is None else save_files(self, glob_str, base_path, glob=glob)

    def log_code(
        self, root: str | None = ".", name: str | None = None, include_fn: Any = None, exclude_fn: Any = None
    ) -> None:
        """Do nothing but warn once. The setting `record_code` records the script's source and uncommitted changes."""
        warn_ignored(
            "run.log_code",
            "the script's source, the commit and uncommitted changes are recorded by init (save_code=True)",
        )

    def mark_preempting(self) -> None:
        """Record a failed end of this run as `preempted`. SIGTERM also does this."""
        self._is_preempting = True

    def use_artifact(self, *arguments: Any, **named: Any) -> Any:
        refuse(
            "run.use_artifact", "read the file from where it is stored; W&B's API still serves artifacts of old runs"
        )

    def use_model(self, *arguments: Any, **named: Any) -> Any:
        refuse("run.use_model", "read the file from where it is stored")

    def restore(self, *arguments: Any, **named: Any) -> Any:
        refuse("run.restore", "read the file from where the earlier run stored it")

    def link_artifact(self, *arguments: Any, **named: Any) -> None:
        warn_ignored("run.link_artifact", "there is no registry of artifacts")

    def link_model(self, *arguments: Any, **named: Any) -> None:
        warn_ignored("run.link_model", "there is no registry of models")

    def display(self, *arguments: Any, **named: Any) -> bool:
        """Return False, because the run is not displayed in notebooks."""
        return False

    def to_html(self, *arguments: Any, **named: Any) -> str:
        """Return a link to the run's page."""
        from html import escape

        return f'<a href="{escape(self.url or "")}">{escape(self.name)}</a>'

    def _label(self, *arguments: Any, **named: Any) -> None:
        """Do nothing. Libraries call it to state their name."""

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        """End the run, and wait for delivery (see `tensormeter.Run.finish`).

        Args:
            exit_code: 0 for a finished run (default), and another number for a failed one.
            quiet: Ignored; set `WANDB_SILENT`.
        """
        if self._is_preempting and exit_code not in (None, 0):
            self._recorded.finish("preempted")
        else:
            self._recorded.finish(exit_code=exit_code)

    join = finish

    @property
    def recorded(self) -> RecordedRun:
        """The `tensormeter.Run` that records the data."""
        return self._recorded

    def forget_when_finished(self, path: Path) -> None:
        """Delete a file when the run finishes without an error."""
        self._resume_file = path

    def _record_config(self, values: Mapping[str, Any]) -> None:
        view = self._recorded.config
        nested = {key: value for key, value in values.items() if isinstance(value, Mapping)}
        view.update({key: value for key, value in values.items() if key not in nested})
        for key, value in nested.items():  # W&B replaces nested values, and `update` would merge them
            view[key] = value

    def _earlier_config(self) -> Mapping[str, Any]:
        from tensormeter.wandb.resumed_run import earlier_config

        return earlier_config(self._recorded)

    def _record_summary(self, values: Mapping[str, Any]) -> None:
        media = {key: value for key, value in values.items() if isinstance(value, Media | tensormeter.Histogram)}
        if media:  # the summary holds numbers and texts
            self._recorded.log(media, self._step)
        self._recorded.summary.update({key: value for key, value in values.items() if key not in media})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recorded.__exit__(kind, error, trace)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the run. A process that unpickles it joins the run."""
        return _join, (self._recorded, self._config.as_dict(), self.entity)

    def __repr__(self) -> str:
        return f"<tensormeter.wandb.Run {self.path} {self.name!r}>"


class AdoptedRun(Run):
    """A run that `tensormeter.init` has started. Its steps go on from the last row, which the script may also have logged with `tensormeter.log`."""

    is_adopted = True

    def log(
        self, data: Mapping[str, Any] = NOTHING, step: Any = None, commit: bool | None = None, sync: Any = None
    ) -> None:
        if step is None:
            self._step = max(self._step, self._recorded._next_step)
        super().log(data, step, commit, sync)


break_graph(AdoptedRun.log)


def _join(recorded: RecordedRun, config: Mapping[str, Any], entity: str) -> Run:
    """Return the run of this package for a run that this process has joined."""
    run = current.known_run(recorded)
    if run is None:
        run = Run(recorded, config, entity=entity)
        current.register(run, recorded)
    return run


def _list(names: Any) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)
