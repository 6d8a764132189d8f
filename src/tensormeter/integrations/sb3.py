"""A callback and an output format for Stable-Baselines3: ``model.learn(..., callback=TensormeterCallback())``."""

import inspect
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam, Image, KVWriter, Video

import tensormeter
from tensormeter.integrations.framework_run import CallbackRun, check_options, join_or_start
from tensormeter.integrations.shield import shielded
from tensormeter.tensorboard.values import attempt, figure_of, histogram_of, image_of, video_of

__all__ = ["TensormeterCallback", "TensormeterOutputFormat"]

_PROJECT: Final = "stable-baselines3"

_FORMATS: Final = frozenset({"tensorboard", "tensormeter"})
"""Names that exclude a value from this output, in the argument `exclude` of `Logger.record`."""

_UNRECORDED: Final = frozenset({"policy", "env", "tensorboard_log", "verbose", "device", "_init_setup_model"})
"""Arguments of algorithms that are recorded under another name, or do not describe the training."""


class TensormeterOutputFormat(KVWriter):
    """An output of SB3's logger: ``Logger(folder, [TensormeterOutputFormat(), HumanOutputFormat(sys.stdout)])``.

    Values that SB3's TensorBoard output accepts are recorded like there: numbers, texts, arrays and tensors as distributions,
    `Image`, `Figure`, `Video`, and the hyperparameters of `HParam` as configuration. The step is `num_timesteps`. Values that
    exclude "tensorboard" or "tensormeter" are left out. Nothing is raised for a value.
    """

    def __init__(self, run: tensormeter.Run | None = None, **options: Any) -> None:
        """
        Args:
            run: Run to record in. Default: the current run or, if there is none, a new one.
            options: Arguments for `tensormeter.init`, such as `project=` and `name=`. With any of them, a run is started even
                if the script has one. Default project: `TENSORMETER_PROJECT`, or else "stable-baselines3".

        Raises:
            TypeError, SettingsError: See `check_options`.
        """
        check_options(options)
        self._joined: CallbackRun = join_or_start(run, options, _PROJECT)

    @property
    def run(self) -> tensormeter.Run:
        """Run that receives the values."""
        return self._joined.run

    @shielded
    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        """Record the values of one dump of the logger as a row."""
        row = {}
        for key, value in key_values.items():
            excluded = key_excluded.get(key) or ()
            if not _FORMATS.isdisjoint([excluded] if isinstance(excluded, str) else excluded):
                continue
            if isinstance(value, HParam):  # its metrics are names of others, with values that mean nothing
                self.run.config.update(value.hparam_dict)
            else:
                row[key] = _loggable(value)
        self.run.log(row, step)

    def resume(self) -> bool:
        """Prepare for another training, and return whether the run goes on. If `start_run` has finished it, continue it."""
        joined = self._joined.current()
        self._joined = joined or self._joined
        return joined is not None

    @shielded
    def close(self) -> None:
        """Finish the run if this output has started it, and wait for delivery."""
        self._joined.finish()


class TensormeterCallback(BaseCallback):
    """Adds a `TensormeterOutputFormat` to the algorithm's logger, and records the algorithm's configuration.

    The other outputs of the logger, such as TensorBoard and the console, stay. A run that the callback has started stays open
    after `learn`, for evaluations and further calls of `learn`. It ends with `finish`, with the program, or when the callback of
    another training starts a run.
    """

    def __init__(self, run: tensormeter.Run | None = None, *, verbose: int = 0, **options: Any) -> None:
        """
        Args:
            run: Run to record in. Default: the current run when training begins or, if there is none, a new one.
            verbose: Verbosity of SB3's callbacks.
            options: Arguments for `tensormeter.init`, such as `project=`, `name=` and `config=`.

        Raises:
            TypeError, SettingsError: See `check_options`.
        """
        super().__init__(verbose)
        check_options(options)
        self._stated = run
        self._options = options
        self._output: TensormeterOutputFormat | None = None

    @property
    def run(self) -> tensormeter.Run | None:
        """Run that receives the values, or None before the first training."""
        return self._output.run if self._output is not None else None

    def finish(self) -> None:
        """Finish the run if the callback has started it, and wait for delivery."""
        if self._output is not None:
            self._output.close()

    @shielded
    def _on_training_start(self) -> None:
        if self._output is None or not self._output.resume():
            self._output = TensormeterOutputFormat(self._stated, **self._options)
        outputs = self.logger.output_formats  # `learn` makes a new logger, unless the script has set one
        earlier = [output for output in outputs if isinstance(output, TensormeterOutputFormat) and output.run.finished]
        for output in earlier:  # those of other callbacks, whose trainings have ended
            outputs.remove(output)
        if self._output not in outputs:
            outputs.append(self._output)
        total = {name: self.locals[name] for name in ("total_timesteps",) if name in self.locals}
        self._output.run.config.update({**_configuration(self.model), **total})

    def _on_step(self) -> bool:
        return True


def _loggable(value: Any) -> Any:
    """Return a value of SB3's logger as `Run.log` records it like SB3's TensorBoard output."""
    match value:
        case np.ndarray() | torch.Tensor():
            return attempt(histogram_of, value, "tensorflow", None)
        case Video():
            return attempt(video_of, value.frames, value.fps)
        case Figure():
            return attempt(lambda: figure_of(value.figure, close=value.close))
        case Image():
            return attempt(image_of, value.image, value.dataformats)
    return value


def _configuration(model: BaseAlgorithm) -> Mapping[str, Any]:
    """Return the arguments that an algorithm was made with, and what it trains on."""
    values: dict[str, Any] = {"algorithm": type(model).__name__}
    for name in inspect.signature(type(model).__init__).parameters:
        if name not in _UNRECORDED and hasattr(model, name):
            values[name] = _constant(getattr(model, name))
    policy = getattr(model, "policy", None)
    if policy is not None:
        values["policy"] = type(policy).__name__
        values["parameters"] = sum(parameter.numel() for parameter in policy.parameters())
    environment = model.get_env()
    if environment is not None:
        values["n_envs"] = environment.num_envs
        values["env"] = _environment_name(environment)
    values["device"] = str(model.device)
    values["observation_space"] = str(model.observation_space)
    values["action_space"] = str(model.action_space)
    return values


def _constant(value: Any) -> Any:
    """Return the first value of a schedule, which SB3 makes of numbers, and other values as they are."""
    if callable(value) and not isinstance(value, type):
        try:
            return float(value(1.0))
        except Exception:  # a function of the script with another purpose
            return getattr(value, "__name__", type(value).__name__)
    return value


def _environment_name(environment: Any) -> str | None:
    try:
        spec = environment.get_attr("spec", 0)[0]
    except Exception:  # an environment of the script may have no specification
        return None
    return getattr(spec, "id", None)
