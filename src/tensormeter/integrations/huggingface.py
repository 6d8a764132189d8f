"""A callback for `transformers.Trainer`. Importing this module makes `report_to="tensormeter"` work."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.integrations.integration_utils import rewrite_logs

import tensormeter
from tensormeter import Run
from tensormeter.integrations.framework_run import check_options, continue_run, end_training, script_run, start_run
from tensormeter.integrations.shield import shielded

__all__ = ["TensormeterCallback"]

logger: Final = logging.getLogger("tensormeter")

_DEFAULT_PROJECT: Final = "huggingface"
"""Default of `TrainingArguments.project`, and project of runs whose project is stated nowhere."""

_TOTALS: Final = frozenset(
    {"total_flos", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
)
"""Values that the Trainer logs once, when the training ends."""

_RECORDER: Final = "_tensormeter"
"""Attribute of a Trainer's `TrainerControl`: the callback that records this Trainer."""

_STATE: Final = "tensormeter"
"""Key of the run's ID in the `trainer_state.json` of a checkpoint."""


class TensormeterCallback(TrainerCallback):
    """A callback that records a Trainer's metrics, configuration and results.

    Only the process with rank 0 records. The callback records to the script's current run. If there is none when the
    training starts, it starts a run, which ends with the process, because `evaluate` and `predict` may follow the training.
    A hyperparameter search starts a run for each trial.

    The Trainer itself waits for the device once per `logging_steps`, to read the loss. The callback never waits.
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        log_checkpoints: bool = False,
        continue_runs: bool = True,
        **options: Any,
    ) -> None:
        """Create the callback. The run starts with the training.

        Args:
            project: Name of the run's project. Default: `TrainingArguments.project` if the script sets it, else
                TENSORMETER_PROJECT, else `huggingface`.
            log_checkpoints: Whether to record where each checkpoint is, with its size and digest, as an artifact.
            continue_runs: Whether a training that resumes from a checkpoint continues the run that wrote the checkpoint.
            options: Further arguments of `tensormeter.init`, such as `tags`.

        Raises:
            TypeError, SettingsError: See `check_options`.
        """
        check_options(options)
        self._options = {**options, "project": project}
        self._log_checkpoints = log_checkpoints
        self._continue_runs = continue_runs
        self._run: Run | None = None
        self._is_own = False
        self._is_trial = False
        self._has_warned = False

    @property
    def run(self) -> Run | None:
        """The run that the callback records to. None before the training, and on all ranks but the first."""
        return self._run

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the Trainer over from the callback of `report_to`, which precedes those that the script passes."""
        vars(control)[_RECORDER] = self

    @shielded
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Choose or start the run, and record the configuration."""
        if not state.is_world_process_zero or self._is_redundant(control):
            return
        is_trial = bool(state.is_hyper_param_search)
        self._continue()
        if self._run is not None and (is_trial or self._is_trial or self._run.finished):
            if self._is_own:
                self._run.finish()
            self._run = None
        if self._run is None:
            run = None if is_trial else script_run()
            self._use(run or self._start(args, state, is_trial), args, model, is_own=run is None)
            self._is_trial = is_trial
        assert self._run is not None
        if isinstance(state.stateful_callbacks, dict):
            state.stateful_callbacks[_STATE] = {"project": self._run.project, "run_id": self._run.id}

    @shielded
    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Record a row of metrics, and values that come once in the summary."""
        if logs and (run := self._find_run(args, state, control, kwargs.get("model"))) is not None:
            totals = {name: value for name, value in logs.items() if name in _TOTALS}
            if totals:
                run.summary.update(totals)
                logs = {name: value for name, value in logs.items() if name not in totals}
            run.log(rewrite_logs(logs), state.global_step)

    @shielded
    def on_predict(self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any], **kwargs: Any) -> None:
        """Record the metrics of `Trainer.predict`."""
        if metrics and (run := self._find_run(args, state, control, kwargs.get("model"))) is not None:
            run.log(rewrite_logs(metrics), state.global_step)

    @shielded
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record where a checkpoint is, with `log_checkpoints`."""
        if self._log_checkpoints and self._run is not None and state.is_world_process_zero:
            path = _checkpoint_path(args, state)
            is_best = state.best_model_checkpoint is not None and Path(state.best_model_checkpoint) == path
            aliases = [f"step-{state.global_step}", *(["best"] if is_best else [])]
            self._run.log_artifact(path, "checkpoint", "model", state.global_step, aliases)

    def _is_redundant(self, control: Any) -> bool:
        """Return whether another callback of this class records the Trainer, whose `control` this is."""
        recorder = vars(control).setdefault(_RECORDER, self)
        if recorder is not self and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the Trainer has two TensormeterCallbacks, and only one of them records; remove the other: leave "
                '"tensormeter" out of report_to, or pass no callback'
            )
        return recorder is not self

    def _continue(self) -> None:
        """Continue the run if the start of another training has finished it."""
        if self._run is not None:
            self._run = continue_run(self._run)
            end_training(self._run)  # at once, because callbacks do not learn of an exception in the training

    def _find_run(self, args: Any, state: Any, control: Any, model: Any) -> Run | None:
        """Return the run to record to. A Trainer that only evaluates uses the current run, if there is one."""
        if not state.is_world_process_zero or self._is_redundant(control):
            return None
        self._continue()
        if self._run is None:
            run = tensormeter.run
            self._use(run or self._start(args, state, is_trial=False), args, model, is_own=run is None)
        return self._run

    def _start(self, args: Any, state: Any, is_trial: bool) -> Run:
        defaults = {"project": _DEFAULT_PROJECT}
        project = getattr(args, "project", None)
        stated: dict[str, Any] = {"project": project if project != _DEFAULT_PROJECT else None}
        run_name = args.run_name if args.run_name != args.output_dir else None
        if is_trial:
            stated |= {"name": state.trial_name, "group": run_name or Path(args.output_dir).name or None}
        else:
            stated["name"] = run_name
            callbacks = state.stateful_callbacks
            earlier = callbacks.get(_STATE) if isinstance(callbacks, dict) else None
            if self._continue_runs and isinstance(earlier, dict) and isinstance(earlier.get("run_id"), str):
                defaults |= {
                    name: earlier[name] for name in ("project", "run_id") if isinstance(earlier.get(name), str)
                }
        own = {name: value for name, value in self._options.items() if value is not None}
        return start_run(stated | own, defaults)

    def _use(self, run: Run, args: Any, model: Any, *, is_own: bool) -> None:
        """Record to a run from now on, and add the configuration to it."""
        self._run, self._is_own = run, is_own
        end_training(run)
        config: dict[str, Any] = {}
        if getattr(model, "peft_config", None) is not None:
            config["peft_config"] = model.peft_config
        model_config = getattr(model, "config", None)
        if model_config is not None:
            config |= model_config if isinstance(model_config, dict) else model_config.to_dict()
        config |= args.to_dict()
        if callable(count := getattr(model, "num_parameters", None)):
            with contextlib.suppress(Exception):  # wrapped, quantized and sharded models may raise anything
                config["model/num_parameters"] = count()
        run.config.update(config)


def _checkpoint_path(args: Any, state: Any) -> Path:
    """Return the folder of the checkpoint that was just saved. Trials have their own folders below `output_dir`."""
    name = f"checkpoint-{state.global_step}"
    folder = Path(args.output_dir)
    if not state.is_hyper_param_search:
        return folder / name
    if state.trial_name is not None:
        return folder / str(state.trial_name) / name
    return max(folder.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime, default=folder / name)


INTEGRATION_TO_CALLBACK["tensormeter"] = TensormeterCallback
