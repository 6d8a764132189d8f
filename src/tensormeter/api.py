"""Beginning a run, and what is called without naming one: it goes to the run that was begun last."""

import reprlib
import secrets
import string
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tensormeter.conventions.semconv import LOCAL_RANK, RANK
from tensormeter.environment.otlp import belongs_to_opentelemetry, read_targets
from tensormeter.errors import SettingsError, UsageError
from tensormeter.exporter import check_exporters
from tensormeter.logger import get_logger
from tensormeter.packages import problem_with
from tensormeter.resource import describe_rank
from tensormeter.session.membership import RunIdentity
from tensormeter.session.run import Run, finish_all, open_runs, remember
from tensormeter.session.run_config import as_json
from tensormeter.settings import Settings

if TYPE_CHECKING:
    from tensormeter.record.deferred_log import DeferredLog

__all__ = ["deferred_log", "finish", "init", "log"]

logger: Final = get_logger()

_PACKAGE_OF: Final = {
    "mlflow": "mlflow",
    "prometheus": "prometheus_client",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Destinations, and the packages that they need."""

_ID_LETTERS: Final = string.ascii_lowercase + string.digits


def init(
    project: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    id: str | None = None,
    group: str | None = None,
    tags: Sequence[str] | None = None,
    notes: str | None = None,
    resume: bool = False,
    mode: str | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
) -> Run:
    """Begin a run.

    Takes some ten milliseconds and talks to no network. The run ends with `Run.finish`, with its `with` block, or when
    the interpreter exits; it counts as failed if an exception or another exit status than 0 ended it, as preempted if SIGTERM
    did, and as crashed if the process just vanished. In a notebook, it ends when another one begins.

    A run whose `id` comes again after its processes have ended is attempted again: nothing of the earlier attempt is deleted,
    and the steps that the later one repeats shadow those of the earlier one.

    Args:
        project: What the run belongs to.
        name: For people; the id if None.
        config: Hyperparameters and whatever else describes the run. What is not JSON is turned into a `str`; what
            cannot be is left out, with a warning. Secrets are masked
            (see the setting `mask_config`). What becomes known later is for `Run.update_config`.
        id: Of the run; give every rank the same. Random if None.
        group: What runs belong together in, such as a sweep.
        tags: Words to find the run by.
        notes: What people should know about the run. What they write on the server takes precedence; so with group and tags.
        resume: Whether there was an attempt at this run before, on whatever machine. Rows that are logged without a step then go
            on behind the last step of the attempts before. Needs an `id`.
        mode: `online`, `offline` or `disabled`.
        settings: A `Settings`, or a mapping of its fields. The arguments above take precedence over it.

    Raises:
        SettingsError: An argument, a setting, or a variable of ours (`TENSORMETER_*`) cannot be used. Variables of other
            software (`OTEL_*`, of launchers and schedulers) are warned about and ignored.
    """
    given = {"project": project, "name": name, "run_id": id, "mode": mode, "group": group, "tags": tags, "notes": notes}
    resolved = _resolve(settings, {key: value for key, value in given.items() if value is not None})
    check_exporters([*resolved.exporters, *(option.partition(".")[0] for option in resolved.exporter_options)])
    if not isinstance(resume, bool):
        raise SettingsError(f"resume: expected True or False, got {reprlib.repr(resume)}")
    if resume and resolved.run_id is None:
        raise SettingsError(
            "resume: expected the id of the run to resume, got none; give id=, or set TENSORMETER_RUN_ID"
        )
    if _in_notebook():
        finish_all()
    resolved = _for_this_rank(resolved)
    _warn_of_signals(resolved)
    if resolved.mode == "online":
        _warn_of_packages(resolved, _check_targets(resolved))
    run_id = resolved.run_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    run = Run(RunIdentity(run_id, resolved.name or run_id, as_json(config or {}), resolved, resume=resume))
    run._begin()
    remember(run)
    return run


def log(
    values: Mapping[str, Any],
    step: int | None = None,
    *,
    every: int | None = None,
    reduce: str | None = None,
) -> None:
    """`Run.log` of the run that was begun last.

    Raises:
        UsageError: There is none.
    """
    if not open_runs:
        raise UsageError("tensormeter.log: there is no run; call tensormeter.init() first")
    open_runs[-1].log(values, step, every=every, reduce=reduce)


def finish() -> None:
    """`Run.finish` of the run that was begun last; does nothing if there is none."""
    if open_runs:
        open_runs[-1].finish()


def deferred_log(
    run: Run,
    names: Sequence[str],
    *,
    capacity: int = 1024,
    device: Any = None,
    first_step: int | None = None,
) -> "DeferredLog":
    """Record from inside functions compiled by `torch.compile`, also with `fullgraph=True`, and from inside CUDA graphs.

    The result's `write({name: tensor})` belongs into the graph, and is a few tensor operations there: no graph break, and
    each replay of a CUDA graph writes a row. Rows are fetched by later `run.log` calls of this thread (four times a second),
    by `flush()`, and by `run.finish`, without waiting for the device. They are recorded in the order of the writes, with the
    time at which they are fetched. If more than `capacity` are written in between, the oldest are lost, and counted.

    Every execution of the write is a row, those of warm-ups and of activation checkpointing's recomputation included.
    Integers are exact up to 2**53. While there is such an object, each `run.log` takes a few microseconds.

    Args:
        run: From `init`, in this process.
        names: Of the metrics of a row.
        capacity: Rows that are kept on the device, which takes 8 bytes a value there, and as many on the host.
        device: Where the values are, as torch names it; the current CUDA device if None and there is one, else the CPU.
        first_step: Step of the first row written; each further one is one more. If None, 0; if the run was begun with
            `resume=True`, the one behind the last step of the attempts before.

    Raises:
        UsageError: An argument cannot be used, or memory for the copies cannot be page-locked.
    """
    from tensormeter.record.deferred_log import DeferredLog

    return DeferredLog(
        run._process.recorder if run._process is not None else None,
        names,
        capacity=capacity,
        device=device,
        first_step=run._identity.first_step if first_step is None else first_step,
    )


def _for_this_rank(settings: Settings) -> Settings:
    """Settings of a run of the first rank, or of another, which may have no part in it."""
    ranks = describe_rank()
    local_rank = ranks.get(LOCAL_RANK, 0)
    rank = ranks.get(RANK, local_rank)
    if (settings.ranks == "first" and rank) or (settings.ranks == "node" and local_rank):
        return settings.replace(mode="disabled")
    if rank == 1 and settings.run_id is None and settings.mode != "disabled":  # one voice of hundreds
        logger.warning(
            "rank %d begins a run of its own, because it was given no id; give every rank the same one (id=, or "
            "TENSORMETER_RUN_ID where they are launched), or record with one of them (TENSORMETER_RANKS=first)",
            rank,
        )
    return settings


def _check_targets(settings: Settings) -> set[str]:
    """Read where OTLP goes, so that what is wrong with it is said here and not only by the agent.

    Returns:
        The destinations that use gRPC.

    Raises:
        SettingsError: An option of a destination cannot be used.
    """
    by_grpc = set()
    for destination in settings.exporters:
        kind = destination.partition(":")[0]
        if kind == "otlp":
            targets = read_targets(destination, settings.options_of(destination), settings.export_timeout)
        elif kind == "experiment" and belongs_to_opentelemetry(settings.endpoint):
            targets = read_targets(destination, {}, settings.export_timeout, default_endpoint=settings.endpoint)
        else:
            continue
        if any(target.protocol == "grpc" for target in targets.values()):
            by_grpc.add(destination)
    return by_grpc


def _warn_of_packages(settings: Settings, by_grpc: set[str]) -> None:
    """Say which destinations need a package that is missing. What is recorded waits for it, and the run goes on."""
    if settings.agent == "off" or describe_rank().get(RANK):  # one voice of hundreds
        return
    for destination in settings.exporters:
        kind = destination.partition(":")[0]
        package = "grpc" if destination in by_grpc else _PACKAGE_OF.get(kind)
        if package and (problem := problem_with(package)):
            extra = "grpc" if destination in by_grpc else kind
            logger.warning(
                "%s: %s, so nothing is delivered there for now; pip install 'tensormeter[%s]' (what is recorded is kept, and "
                "`tensormeter sync` delivers it)",
                *(destination, problem, extra),
            )


def _in_notebook() -> bool:
    """Whether cells are run one after the other, so that a run that is not finished was most likely forgotten."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _warn_of_signals(settings: Settings) -> None:
    """Say which signals a destination is not sent."""
    if settings.mode == "disabled" or describe_rank().get(RANK):  # one voice of hundreds
        return
    for destination in settings.exporters:
        for left in settings.signals_left_out(destination):
            logger.warning("%s: no %s are sent, because %s", destination, left.signal, left.reason)


def _resolve(settings: Settings | Mapping[str, Any] | None, given: Mapping[str, Any]) -> Settings:
    if isinstance(settings, Settings):
        return settings.replace(**given)
    fields = dict(settings or {})
    unknown = sorted(set(fields) - Settings.names())
    if unknown:
        raise SettingsError(f"settings: {unknown[0]!r} is not one of {', '.join(sorted(Settings.names()))}")
    return Settings(**{**fields, **given})
