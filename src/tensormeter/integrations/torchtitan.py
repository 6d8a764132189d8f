"""torchtitan: a metrics processor whose Config goes into `Trainer.Config.metrics`."""

import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import distributed
from torchtitan.components import metrics as titan
from torchtitan.components.metrics import BaseLogger, LoggerContainer, MetricsProcessor

import tensormeter
from tensormeter import Run, Settings, SettingsError
from tensormeter.integrations.shield import shielded

__all__ = ["TensormeterLogger", "TensormeterMetricsProcessor"]


class TensormeterLogger(BaseLogger):
    """Logger of torchtitan that records to a run."""

    def __init__(self, run: Run, *, finishes: bool, tag: str | None = None) -> None:
        """
        Args:
            run: Run to record to.
            finishes: Whether `close` finishes the run.
            tag: Prefix of all metric names.
        """
        self.run = run
        self._finishes = finishes
        self._tag = tag

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.run.log(metrics if self._tag is None else {self._tag: metrics}, step)

    @shielded
    def close(self) -> None:
        """Finish the run. torchtitan closes its loggers while it handles an exception, which makes the run a failed one."""
        if self._finishes:
            self.run.__exit__(*sys.exc_info())


class TensormeterMetricsProcessor(MetricsProcessor):
    """Metrics processor that also records to a run.

    torchtitan selects the rank that logs: rank 0 or, with pipeline parallelism, the first rank of the last stage. This rank
    records even if the setting `ranks` is `first`. With `save_for_all_ranks`, all ranks record to one run.

    If the script has started a run, its current run receives the metrics. The processor finishes only a run that it has
    started.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        enable_tensormeter: bool = True
        """Whether to record to tensormeter"""

        project: str | None = None
        """Project of the run. Default: the setting `project`, else `torchtitan`"""

        name: str | None = None
        """Display name of the run"""

    def _build_metric_logger(
        self, *, config: Any, parallel_dims: Any, pp_schedule: str, tag: str | None = None, **named: Any
    ) -> BaseLogger:
        loggers = super()._build_metric_logger(
            config=config, parallel_dims=parallel_dims, pp_schedule=pp_schedule, tag=tag, **named
        )
        if not config.enable_tensormeter:
            return loggers
        rank = titan._get_metrics_rank(parallel_dims=parallel_dims, pp_schedule=pp_schedule)
        # All ranks take part before any of them can fail or return; otherwise, the others would wait for it.
        common_id = _common_id() if config.save_for_all_ranks else None
        logger = _build_logger(config, rank, common_id, named.get("config_dict") or {}, tag)
        if logger is None:
            return loggers
        container = LoggerContainer()
        container.add_logger(loggers)
        container.add_logger(logger)
        return container


@shielded
def _build_logger(
    config: Any, metrics_rank: int, common_id: str | None, values: dict[str, Any], tag: str | None
) -> TensormeterLogger | None:
    """Return the logger of this rank, or None if the rank does not log.

    Args:
        config: Configuration of the metrics processor.
        metrics_rank: Rank that logs.
        common_id: ID of the run of all ranks, if they record.
        values: Configuration of the whole training.
        tag: Prefix of all metric names.
    """
    defaults: dict[str, Any] = {"project": "torchtitan"}
    if not config.save_for_all_ranks and _rank() != metrics_rank:
        return None
    if (run := tensormeter.run) is not None:
        run.config.update(values)
        return TensormeterLogger(run, finishes=False, tag=tag)
    run = tensormeter.init(
        project=config.project,
        name=config.name,
        config=values,
        id=common_id,
        settings={"ranks": "all" if config.save_for_all_ranks else "this"},
        defaults=defaults,
    )
    return TensormeterLogger(run, finishes=True, tag=tag)


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


@shielded
def _common_id() -> str:
    """Return the run ID of rank 0, which is random if its settings have none. All ranks must call this. Blocks until they have."""
    ids = [secrets.token_hex(4)]
    with suppress(SettingsError):  # `init` raises it, once no rank waits for another
        ids = [Settings().run_id or ids[0]]
    if distributed.is_initialized():
        distributed.broadcast_object_list(ids)
    return ids[0]
