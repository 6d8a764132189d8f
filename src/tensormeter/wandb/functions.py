"""The functions of the module `wandb`, which act on the current run. Without a run, they warn once and do nothing."""

import logging
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

from tensormeter.record.dynamo import break_graph
from tensormeter.wandb import current
from tensormeter.wandb.artifacts import Artifact
from tensormeter.wandb.flat_rows import NOTHING
from tensormeter.wandb.notices import refusing, warn_ignored, warn_once
from tensormeter.wandb.sdk.wandb_metric import Metric
from tensormeter.wandb.sdk.wandb_run import Run
from tensormeter.wandb.sdk.wandb_settings import Settings

__all__ = [
    "AlertLevel",
    "agent",
    "alert",
    "attach",
    "controller",
    "define_metric",
    "ensure_configured",
    "finish",
    "global_settings",
    "join",
    "link_model",
    "log",
    "log_artifact",
    "log_model",
    "login",
    "mark_preempting",
    "require",
    "restore",
    "save",
    "setup",
    "sweep",
    "teardown",
    "termerror",
    "termlog",
    "termwarn",
    "unwatch",
    "use_artifact",
    "use_model",
    "warn_without_run",
    "watch",
]

_OPTUNA = "use Optuna, whose trials tensormeter.integrations.optuna records as a group of runs"


class AlertLevel(Enum):
    """Severity of an alert."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


def log(data: Mapping[str, Any] = NOTHING, step: Any = None, commit: bool | None = None, sync: Any = None) -> None:
    """Record values in the current run. See `Run.log` for the arguments."""
    run = current.run
    if run is None:
        run = _run_for("log")
        if run is None:
            return
    run.log(data, step, commit)


break_graph(log)


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """End the current run. See `Run.finish` for the arguments. Without a run, this does nothing."""
    run = current.current_run()
    if run is not None:
        run.finish(exit_code, quiet)


join = finish


def define_metric(name: Any, *arguments: Any, **named: Any) -> Metric:
    """Define a metric of the current run. See `Run.define_metric` for the arguments."""
    run = _run_for("define_metric")
    return Metric(str(name)) if run is None else run.define_metric(name, *arguments, **named)


def watch(models: Any, *arguments: Any, **named: Any) -> None:
    """Watch models with the current run. See `Run.watch` for the arguments."""
    run = _run_for("watch")
    if run is not None:
        run.watch(models, *arguments, **named)


def unwatch(models: Any = None) -> None:
    """Stop watching some models. Default: all."""
    run = current.current_run()
    if run is not None:
        run.unwatch(models)


def alert(title: str, text: str = "", level: Any = None, wait_duration: Any = None) -> None:
    """Record an alert in the current run. See `Run.alert` for the arguments."""
    run = _run_for("alert")
    if run is not None:
        run.alert(title, text, level, wait_duration)


def save(glob_str: Any = None, *arguments: Any, **named: Any) -> list[str] | bool:
    """Record where files of the current run are. See `Run.save` for the arguments."""
    run = _run_for("save")
    return [] if run is None else run.save(glob_str, *arguments, **named)


def log_artifact(artifact_or_path: Any, *arguments: Any, **named: Any) -> Any:
    """Record an artifact in the current run. See `Run.log_artifact` for the arguments. Returns the artifact."""
    run = _run_for("log_artifact")
    return artifact_or_path if run is None else run.log_artifact(artifact_or_path, *arguments, **named)


def log_model(path: Any, *arguments: Any, **named: Any) -> Artifact | None:
    """Record a model in the current run. See `Run.log_model` for the arguments."""
    run = _run_for("log_model")
    return None if run is None else run.log_model(path, *arguments, **named)


def link_model(*arguments: Any, **named: Any) -> None:
    """Do nothing but warn once."""
    warn_ignored("wandb.link_model", "there is no registry of models")


def mark_preempting() -> None:
    """Record a failed end of the current run as `preempted`."""
    run = current.current_run()
    if run is not None:
        run.mark_preempting()


def login(*arguments: Any, **named: Any) -> bool:
    """Return True. No key is read, stored or sent; the setting `token` holds the token of an experiment server."""
    return True


def setup(settings: Any = None) -> "_Setup":
    """Keep settings for the runs that `init` starts from now on.

    Returns:
        Object with these settings.
    """
    if settings is not None:
        _setup.settings.update(settings)
    return _setup


def global_settings() -> Settings:
    """Return the settings that `setup` has received."""
    return _setup.settings


def teardown(exit_code: int | None = None) -> None:
    """Finish all runs of this process that `init` has started."""
    for run in reversed(current.active_runs()):
        run.finish(exit_code)


def attach(*arguments: Any, **named: Any) -> Run | None:
    """Return the current run, because forked children log to it without attaching."""
    return current.current_run()


def require(*arguments: Any, **named: Any) -> None:
    """Do nothing: there are no optional features."""


ensure_configured = require


def termlog(string: Any = "", newline: bool = True, repeat: bool = True, **named: Any) -> None:
    """Print a line on standard error."""
    sys.stderr.write(f"{string}\n" if newline else str(string))


def termwarn(string: Any, **named: Any) -> None:
    """Log a warning."""
    logging.getLogger("tensormeter").warning("%s", string)


def termerror(string: Any, **named: Any) -> None:
    """Log an error."""
    logging.getLogger("tensormeter").error("%s", string)


sweep = refusing("wandb.sweep", _OPTUNA)
agent = refusing("wandb.agent", _OPTUNA)
controller = refusing("wandb.controller", _OPTUNA)
use_artifact = refusing("wandb.use_artifact", "read the file from where it is stored")
use_model = refusing("wandb.use_model", "read the file from where it is stored")
restore = refusing("wandb.restore", "read the file from where the earlier run stored it")


class _Setup:
    """The object that `setup` returns.

    Attributes:
        settings: Settings for further runs.
    """

    def __init__(self) -> None:
        self.settings = Settings()


_setup = _Setup()


def warn_without_run(noun: str) -> None:
    """Warn once that there is no run for a function or a document."""
    warn_once(
        ("no run", noun), "wandb.%s: there is no unfinished run, so nothing is recorded; call wandb.init() first", noun
    )


def _run_for(function: str) -> Run | None:
    """Return the current run. Without one, warn once and return None."""
    run = current.current_run()
    if run is None:
        warn_without_run(function)
    return run
