"""Ray: each trial of Ray Tune, and each training of Ray Train, is a run."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ray.train
import ray.tune
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback

import tensormeter
from tensormeter import Run, Text
from tensormeter.integrations.shield import shielded
from tensormeter.integrations.trial_runs import TrialRuns

__all__ = ["TensormeterLoggerCallback", "setup"]

_DEFAULTS: Final[Mapping[str, Any]] = {"project": "ray"}

_DRIVER_DEFAULTS: Final[Mapping[str, Any]] = {**_DEFAULTS, "console": "off", "sample_interval": 0.0}
"""Settings of the runs in the driver, whose output and hardware are not those of the trials."""

_DESCRIPTION: Final = frozenset({"date", "experiment_tag", "hostname", "node_ip", "pid", "trial_id"})
"""Entries of a result that describe the trial. They become part of the configuration."""

_NOT_RECORDED: Final = frozenset({"checkpoint_dir_name", "config", "done", "should_checkpoint", "timestamp"})
"""Entries of a result that the run has elsewhere: in its configuration, its state, or the times of its points."""

_ERROR_CHARACTERS: Final = 65_536


class TensormeterLoggerCallback(LoggerCallback):
    """Callback for `RunConfig(callbacks=[...])` of Ray Tune that records each trial as a run.

    It runs in the driver. The run's group is the experiment's name, its configuration the trial's. Each reported result is a
    row, whose step is `timesteps_total` or `training_iteration`. A run whose trial is restored, by `Tuner.restore` or after a
    failure, continues.

    Ray can also create the callback itself, with `RAY_TUNE_CALLBACKS=tensormeter.integrations.ray.TensormeterLoggerCallback`.
    """

    def __init__(self, *, log_checkpoints: bool = True, **options: Any) -> None:
        """
        Args:
            log_checkpoints: Whether to record where checkpoints are (see `Run.log_artifact`).
            options: Arguments of `tensormeter.init` for all runs, such as `project` and `tags`. Default project: `ray`.

        Raises:
            TypeError, SettingsError: See `TrialRuns`.
        """
        self._log_checkpoints = log_checkpoints
        self._runs = TrialRuns(options, _DRIVER_DEFAULTS)

    @shielded
    def log_trial_start(self, trial: Trial) -> None:
        """Start the run of a trial. If the trial continues with another configuration, record the change."""
        if run := self._runs.get(trial.trial_id):
            run.config.update(trial.config)
            return
        experiment = trial.experiment_dir_name
        self._runs.start(
            trial.trial_id,
            str(trial),
            run_id=_trial_run_id(experiment, trial.trial_id),
            group=experiment,
            config={**trial.config, "ray": {"trainable": trial.trainable_name, "trial_id": trial.trial_id}},
        )

    @shielded
    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Record a result as a row."""
        if (run := self._runs.get(trial.trial_id)) is None:
            return
        if "pid" in result and run.config.get("ray", {}).get("pid") != result["pid"]:
            run.config.update({"ray": {name: result[name] for name in _DESCRIPTION & result.keys()}})
        left_out = _DESCRIPTION | _NOT_RECORDED
        row = {name: value for name, value in result.items() if name not in left_out and value is not None}
        run.log(row, _step(result))

    @shielded
    def log_trial_save(self, trial: Trial) -> None:
        """Record where the latest checkpoint of a trial is."""
        run, checkpoint = self._runs.get(trial.trial_id), trial.checkpoint
        if run is not None and checkpoint is not None and self._log_checkpoints:
            run.log_artifact(checkpoint.path, "checkpoint", aliases=[os.path.basename(checkpoint.path)])

    @shielded
    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record why Ray starts a trial again. Its run continues."""
        del iteration, trials, info
        self._log_error(trial)

    @shielded
    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        """Finish the run of a trial, without waiting for delivery."""
        if failed:
            self._log_error(trial)
        self._runs.finish(trial.trial_id, "failed" if failed else "finished")

    @shielded
    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Finish the runs of trials that Ray has not ended, which a later `Tuner.restore` can continue, and wait for delivery."""
        del info
        for trial in trials:
            self._runs.finish(trial.trial_id, "preempted")
        self._runs.wait()

    def _log_error(self, trial: Trial) -> None:
        run, file = self._runs.get(trial.trial_id), trial.error_file
        if run is not None and file and os.path.exists(file):
            text = Path(file).read_text(encoding="utf-8", errors="replace")[-_ERROR_CHARACTERS:]
            run.log({"error": Text(text)}, _step(trial.last_result or {}))


def setup(config: Any = None, **options: Any) -> Run:
    """Start the run of a worker, in the training function of Ray Train or Ray Tune.

    All workers of a training get the same run ID, and each records under its rank in Ray. In a trial of Ray Tune, the ID is
    also that of `TensormeterLoggerCallback`, so both record to one run. Outside of Ray, this is the same as `tensormeter.init`.

    Use the result as a context manager, because Ray may kill a worker whose function has returned:
    ``with setup(config) as run: ...``.

    Args:
        config: Configuration of the run.
        options: Arguments of `tensormeter.init`. The defaults of `name` and `group` come from Ray.

    Raises:
        SettingsError: See `tensormeter.init`.
    """
    context = _context()
    experiment = context.get_experiment_name() if context is not None else None
    if not experiment:
        return tensormeter.init(**options, config=config, defaults=_DEFAULTS)
    _state_ranks(context)
    try:
        trial_id = context.get_trial_id()
    except DeprecationWarning:  # Ray Train V2 has no trials
        trial_id = None
    defaults = {**_DEFAULTS, "name": experiment, "run_id": _digest(experiment, 12), "group": experiment}
    if trial_id:
        options = {"name": context.get_trial_name(), "id": _trial_run_id(experiment, trial_id), **options}
    return tensormeter.init(**options, config=config, defaults=defaults)


def _context() -> Any:
    """Return the context of this worker or trial, or None outside of Ray."""
    if not ray.is_initialized():
        return None
    try:
        return ray.train.get_context()
    except (RuntimeError, DeprecationWarning):  # this is no worker of Ray Train
        return ray.tune.get_context()


def _state_ranks(context: Any) -> None:
    """Set the variables from which tensormeter reads this process's rank.

    Only workers of `TorchTrainer` have those of torch, and in a Slurm job all have those of the node's Ray daemon.
    """
    is_worker = context.get_world_size() is not None
    values = {
        "RANK": context.get_world_rank() if is_worker else 0,
        "WORLD_SIZE": context.get_world_size() if is_worker else 1,
        "LOCAL_RANK": context.get_local_rank() if is_worker else 0,
        "LOCAL_WORLD_SIZE": context.get_local_world_size() if is_worker else 1,
    }
    os.environ.update({f"TENSORMETER_{name}": str(value) for name, value in values.items()})


def _trial_run_id(experiment: str, trial_id: str) -> str:
    """Return the run ID of a trial. Trial IDs are too short to be unique among many experiments."""
    return f"{trial_id}-{_digest(experiment, 6)}"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _step(result: Mapping[str, Any]) -> int | None:
    return result.get("timesteps_total") or result.get("training_iteration")
