"""A callback for Keras 3: ``model.fit(..., callbacks=[TensormeterCallback()])``. It works with all backends of Keras."""

from collections.abc import Mapping
from typing import Any, Final

import keras

import tensormeter
from tensormeter.integrations.framework_run import CallbackRun, check_options, join_or_start
from tensormeter.integrations.shield import shielded

__all__ = ["TensormeterCallback"]

_PROJECT: Final = "keras"


class TensormeterCallback(keras.callbacks.Callback):
    """Records the metrics, the learning rate and the configuration of `fit`, and the results of `evaluate`.

    Metrics of batches are named `batch/loss` and so on, and metrics of epochs `epoch/loss`, `epoch/val_loss` and so on. The step
    of all rows is the number of batches so far, over all epochs and calls of `fit`. Charts of `epoch/*` have the metric `epoch`
    as their x axis. Results of `evaluate` outside of `fit` are named `test/loss` and so on.

    The callback uses the current run of the script. If there is none, it starts one, which stays open for an `evaluate` after
    `fit`. Such a run ends with `finish`, with the program, or when the callback of another training starts a run.
    """

    def __init__(
        self, run: tensormeter.Run | None = None, *, every: int | None = 1, initial_step: int = 0, **options: Any
    ) -> None:
        """
        Args:
            run: Run to record in. Default: the current run when training begins.
            every: Number of batches between two rows of batch metrics. None records epochs only.
            initial_step: Number of batches before this training, for one that is resumed.
            options: Arguments for `tensormeter.init`, such as `project=`, `name=` and `config=`. With any of them, the callback
                starts a run even if the script has one. Default project: `TENSORMETER_PROJECT`, or else "keras".

        Raises:
            UsageError: `every` is invalid.
            TypeError, SettingsError: See `check_options`.
        """
        super().__init__()
        check_options(options)
        if every is not None and (not isinstance(every, int) or every < 1):
            raise tensormeter.UsageError(f"every: expected a number of batches from 1, or None, got {every!r}")
        self._stated = run
        self._options = options
        self._every = every
        self._joined: CallbackRun | None = None
        self._batches = initial_step
        self._before = -1  # index of the last batch in this epoch
        self._is_training = False

    @property
    def run(self) -> tensormeter.Run | None:
        """Run that the callback records in, or None before the first training."""
        return self._joined.run if self._joined is not None else None

    def finish(self) -> None:
        """Finish the run if the callback has started it, and wait for delivery."""
        if self._joined is not None:
            self._joined.finish()

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Note that `fit`, `evaluate` or `predict` begins. The validation within `fit` does not call this."""
        super().set_params(params)
        self._is_training = False  # an exception may have ended the last `fit`

    @shielded
    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._is_training = True
        run = self._join()
        run.define_metric("epoch/*", step_metric="epoch")
        run.config.update(self._configuration())

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._is_training = False

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._is_training = True
        self._before = -1

    @shielded
    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        earlier = self._batches
        self._batches += max(batch - self._before, 1)  # more than one with `steps_per_execution`
        self._before = batch
        if self._every is not None and self._batches // self._every > earlier // self._every:
            self._log("batch", logs)

    @shielded
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._log("epoch", logs, epoch=epoch)

    @shielded
    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if not self._is_training:
            self._join()

    @shielded
    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if not self._is_training:  # within `fit`, the results of validation arrive with the epoch
            self._join().log({f"test/{name}": value for name, value in (logs or {}).items()}, self._batches)

    def _join(self) -> tensormeter.Run:
        joined = self._joined
        if joined is None or joined.run.finished:
            joined = (joined and joined.current()) or join_or_start(self._stated, self._options, _PROJECT)
            self._joined = joined
        return joined.run

    def _log(self, prefix: str, logs: Mapping[str, Any] | None, **others: Any) -> None:
        values = {f"{prefix}/{name}": value for name, value in (logs or {}).items()}
        rate = _learning_rate(self.model)
        if rate is not None:
            values.setdefault(f"{prefix}/learning_rate", rate)
        self._join().log({**values, **others}, self._batches)

    def _configuration(self) -> dict[str, Any]:
        model = self.model
        values: dict[str, Any] = {
            "model": {"name": model.name, "class": type(model).__name__, **_parameters(model)},
            "fit": {name: value for name, value in (self.params or {}).items() if name != "verbose"},
            "backend": keras.backend.backend(),
            "dtype_policy": getattr(getattr(model, "dtype_policy", None), "name", None),
        }
        for name, describe in (("optimizer", _optimizer), ("loss", _loss)):
            try:
                values[name] = describe(model)
            except Exception:  # an object of the script may not describe itself; the rest is recorded
                values[name] = type(getattr(model, name, None)).__name__
        return values


def _parameters(model: Any) -> dict[str, int]:
    if not model.built:
        return {}
    trainable = sum(_size(weight.shape) for weight in model.trainable_variables)
    return {"parameters": model.count_params(), "trainable_parameters": trainable}


def _size(shape: Any) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _optimizer(model: Any) -> Any:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    return {"class": type(optimizer).__name__, **optimizer.get_config()}


def _loss(model: Any) -> Any:
    loss = getattr(model, "loss", None)
    return loss if loss is None or isinstance(loss, str | Mapping) else getattr(loss, "name", type(loss).__name__)


def _learning_rate(model: Any) -> Any:
    """Return the current learning rate without waiting for a device, or None if there is none.

    Tensors of torch and arrays of JAX are recorded when they are available. TensorFlow's are read, because `log` does not accept them.
    """
    try:
        rate = model.optimizer.learning_rate
        rate = getattr(rate, "value", rate)
        return rate.numpy() if keras.backend.backend() == "tensorflow" and hasattr(rate, "numpy") else rate
    except Exception:  # an optimizer of the script may have no learning rate, and the training goes on
        return None
