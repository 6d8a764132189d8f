"""The callback for Lightning that reads metrics without waiting for the device."""

from collections import Counter
from typing import Any, Final

from tensormeter import Run
from tensormeter.integrations.framework_run import check_options, continue_run, end_training, script_run, start_run
from tensormeter.integrations.lightning.base import CallbackBase
from tensormeter.integrations.lightning.logger import TensormeterLogger
from tensormeter.integrations.shield import shielded

__all__ = ["TensormeterCallback"]

_DEFAULT_PROJECT: Final = "lightning_logs"


class TensormeterCallback(CallbackBase):
    """A callback that records the metrics of `self.log` as tensors, without waiting for the device.

    Lightning calls `.item()` on each metric before it calls a logger, and so waits for the device. This callback reads the
    tensors in `trainer.logged_metrics` instead. Names, steps and the column `epoch` are those that a logger receives, with
    these exceptions: a metric named `step` does not replace the step, and values that a LightningModule logs in
    `on_train_batch_end` are recorded with the next batch.

    Lightning also waits for metrics with `prog_bar=True`, and for all loggers of the Trainer: use ``Trainer(logger=False)``. If the
    Trainer has a `TensormeterLogger`, the callback records to the same run, and only the rows between those of the logger.
    """

    def __init__(self, project: str | None = None, *, every: int | None = None, **options: Any) -> None:
        """Create the callback. The run starts with the training, unless the script or a `TensormeterLogger` has started one.

        Args:
            project: Name of the run's project. Default: TENSORMETER_PROJECT, else `lightning_logs`.
            every: Number of training steps from one row to the next. Default: the Trainer's `log_every_n_steps`.
            options: Further arguments of `tensormeter.init`, such as `tags`.

        Raises:
            TypeError, SettingsError: See `check_options`.
            ValueError: `every` is not positive.
        """
        super().__init__()
        if every is not None and every < 1:
            raise ValueError(f"every: expected a number of steps, at least 1, got {every}")
        check_options(options)
        self._options = {**options, "project": project}
        self._every = every
        self._run: Run | None = None
        self._has_logger = False  # a TensormeterLogger records the rows of the Trainer in the same run
        self._seen: dict[str, tuple[Any, int]] = {}  # the tensor last seen of each metric, and its version
        self._epoch = 0
        self._epoch_step = 0
        self._evaluated: Counter[tuple[str, int]] = Counter()  # number of batches by stage and data loader

    @property
    def run(self) -> Run | None:
        """The run that the callback records to. None before the training, and on all ranks but the first."""
        return self._run

    @shielded
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Choose or start the run, and record the hyperparameters."""
        if not trainer.is_global_zero:
            return
        loggers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensormeterLogger)]
        if self._run is not None:
            self._run = continue_run(self._run)
        if self._run is None or self._run.finished:
            run = loggers[0] if loggers else script_run()
            self._run = run or start_run(self._options, {"project": _DEFAULT_PROJECT})
        self._has_logger = self._run.id in {experiment.id for experiment in loggers}
        for source in (pl_module, trainer.datamodule):
            if getattr(source, "_log_hyperparams", False):  # False after `save_hyperparameters(logger=False)`
                values = source.hparams_initial.items()
                self._run.config.update({name: value for name, value in values if name != "_class_path"})

    @shielded
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let the start of another training finish the run."""
        if self._run is not None:
            end_training(self._run)

    @shielded
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let the start of another training finish the run, which then counts as failed."""
        if self._run is not None:
            end_training(self._run, "failed")

    @shielded
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the metrics of the batch, at the steps at which loggers would receive them."""
        metrics = self._of_batch(trainer)
        fit_loop = trainer.fit_loop
        if fit_loop._should_accumulate() and trainer.lightning_module.automatic_optimization:
            return
        if self._has_logger and trainer._logger_connector.should_update_logs:
            return
        step = fit_loop.epoch_loop._batches_that_stepped
        every = self._every or trainer.log_every_n_steps
        if (every and (step + 1) % every == 0) or trainer.should_stop or trainer.fast_dev_run:
            self._record(metrics, step, trainer.current_epoch)

    @shielded
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the epoch and its last step. Its metrics are complete only after the hooks of the LightningModule."""
        self._epoch, self._epoch_step = trainer.current_epoch, trainer.fit_loop.epoch_loop._batches_that_stepped - 1

    @shielded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the metrics of the previous epoch."""
        self._record_epoch(trainer, self._epoch_step, self._epoch)

    @shielded
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the metrics of the last epoch."""
        self._record_epoch(trainer, self._epoch_step, self._epoch)

    @shielded
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record metrics with `on_step=True`. Their steps count the batches, as those of loggers do."""
        if not trainer.sanity_checking:
            self._record_evaluated(trainer, "validation", dataloader_idx)

    @shielded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the metrics of the validation."""
        if not trainer.sanity_checking:
            self._record_epoch(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.current_epoch)

    @shielded
    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record metrics with `on_step=True`. Their steps count the batches, as those of loggers do."""
        self._record_evaluated(trainer, "test", dataloader_idx)

    @shielded
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the metrics of the test."""
        self._record_epoch(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.current_epoch)

    def _record_evaluated(self, trainer: Any, stage: str, dataloader_idx: int) -> None:
        step = self._evaluated[stage, dataloader_idx]
        self._evaluated[stage, dataloader_idx] += 1
        metrics = self._of_batch(trainer)
        if self._run is not None and metrics and not self._has_logger:
            self._run.log(metrics, step)

    def _record_epoch(self, trainer: Any, step: int, epoch: int) -> None:
        metrics = self._of_epoch(trainer)
        if not self._has_logger:
            self._record(metrics, step, epoch)

    def _record(self, metrics: dict[str, Any], step: int, epoch: int) -> None:
        if self._run is not None and metrics:
            self._run.log({"epoch": epoch, **metrics}, max(step, 0))

    def _of_batch(self, trainer: Any) -> dict[str, Any]:
        """Return the metrics of the current batch, as loggers receive them, and mark them as seen."""
        metrics: dict[str, Any] = trainer._logger_connector.metrics["log"]
        for name, tensor in metrics.items():
            self._seen[name] = (tensor, _version(tensor))
        return metrics

    def _of_epoch(self, trainer: Any) -> dict[str, Any]:
        """Return the metrics that have changed since they were seen last, and mark them as seen.

        `logged_metrics` keeps the values of batches and of earlier epochs. A metric has changed if it is in other memory, or if
        the memory was written. The tensors in `_seen` prevent memory from being used again.
        """
        fresh = {}
        for name, tensor in trainer.logged_metrics.items():
            seen = self._seen.get(name)
            version = _version(tensor)
            if seen is None or seen[1] != version or seen[0].data_ptr() != tensor.data_ptr():
                self._seen[name] = (tensor, version)
                fresh[name] = tensor
        return fresh


def _version(tensor: Any) -> int:
    """Return the number of times that a tensor was changed in place. Inference tensors do not count this."""
    return 0 if tensor.is_inference() else int(tensor._version)
