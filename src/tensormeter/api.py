"""The functions `init`, `log`, `finish` and `deferred_log`."""

import reprlib
import secrets
import string
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tensormeter.conventions.semconv import LOCAL_RANK, RANK
from tensormeter.environment.otlp import belongs_to_opentelemetry, read_targets
from tensormeter.errors import SettingsError, UsageError, join_choices
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
"""Import name of the Python package that a kind of destination requires."""

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
    """Start a run.

    The call takes about ten milliseconds and does not use the network. The run ends when `Run.finish` is called, when
    its `with` block ends, or when the interpreter exits. Its final state is:

    - `finished` if the program ended normally.
    - `failed` if it ended with an exception or a nonzero exit status.
    - `preempted` if SIGTERM ended it.
    - `crashed` if the process disappeared without ending the run.

    In a notebook or an IPython shell, starting a run finishes all previous runs.

    If you pass the `id` of a run whose processes have all ended, `init` starts another attempt at that run. The data of
    earlier attempts is kept. If the new attempt repeats a step, its values hide the earlier ones.

    Args:
        project: Name of the run's project.
        name: Display name of the run. Default: the run's ID.
        config: Hyperparameters and other values that describe the run. Values that JSON cannot represent are converted
            with `str`; values that cannot be converted are omitted with a warning. Secrets are masked (see the setting
            `mask_config`). To add values later, call `Run.update_config`.
        id: ID of the run. Pass the same ID on all ranks. Default: a random ID.
        group: Name of the run's group, for example the name of a sweep.
        tags: Keywords for finding the run.
        notes: Notes about the run. If users edit the notes, group or tags on the server, their edits take precedence.
        resume: Whether to continue a run that had an earlier attempt, on this or another machine. Rows logged without a
            step then continue after the last step of the earlier attempts. Requires `id`.
        mode: `online` delivers the data, `offline` only writes it to disk, and `disabled` records nothing. Default:
            `online`.
        settings: A `Settings` object, or a mapping of its fields. The other arguments of `init` take precedence.

    Raises:
        SettingsError: An argument, a setting or a `TENSORMETER_*` variable is invalid. Other software's invalid
            variables (`OTEL_*`, and those of launchers and schedulers) are ignored with a warning.
    """
    fields = {
        "project": project,
        "name": name,
        "run_id": id,
        "mode": mode,
        "group": group,
        "tags": tags,
        "notes": notes,
    }
    resolved = _resolve(settings, {key: value for key, value in fields.items() if value is not None})
    check_exporters([*resolved.exporters, *(option.partition(".")[0] for option in resolved.exporter_options)])
    if not isinstance(resume, bool):
        raise SettingsError(f"resume: expected True or False, got {reprlib.repr(resume)}")
    if resume and resolved.run_id is None:
        raise SettingsError("resume: the ID of the run to resume is missing; pass id=, or set TENSORMETER_RUN_ID")
    if _in_notebook():
        finish_all()
    resolved = _settings_of_rank(resolved)
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
    """Record one row of metrics in the most recently started unfinished run. See `Run.log` for the arguments.

    Raises:
        UsageError: No run is in progress.
    """
    if not open_runs:
        raise UsageError("tensormeter.log: there is no run; call tensormeter.init() first")
    open_runs[-1].log(values, step, every=every, reduce=reduce)


def finish() -> None:
    """End the most recently started unfinished run, if there is one, and wait for delivery. See `Run.finish`."""
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
    """Create an object that records inside CUDA graphs and `torch.compile` functions, even with `fullgraph=True`.

    Call the object's `write({name: tensor})` method inside the graph. It adds a few tensor operations but no graph
    break. Each replay of a CUDA graph writes a row. Up to four times a second, `run.log` calls on this thread start to
    copy the rows to the host, and `flush()` does so at once; neither waits for the device. `run.finish` waits up to
    five seconds for the remaining rows.

    Rows are recorded in the order in which they were written, with the time at which the host records them. If more
    than `capacity` rows are written between two copies, the oldest rows are lost and counted.

    Every execution of `write` records a row, including warm-ups and recomputation during activation checkpointing.
    Integers are exact up to 2**53. While the object exists, each `run.log` call takes a few microseconds.

    Args:
        run: Run started by `init` in this process.
        names: Names of the metrics in each row.
        capacity: Number of rows to buffer, both on the device and on the host, at 8 bytes per value.
        device: Torch device of the values. Default: the current CUDA device, or the CPU if there is none.
        first_step: Step of the first row; each further row increases the step by one. Default: 0, or, with
            `resume=True`, the step after the last step of the earlier attempts.

    Raises:
        UsageError: `names` or `capacity` is invalid.
    """
    from tensormeter.record.deferred_log import DeferredLog

    return DeferredLog(
        run._process.recorder if run._process is not None else None,
        names,
        capacity=capacity,
        device=device,
        first_step=run._identity.first_step if first_step is None else first_step,
    )


def _settings_of_rank(settings: Settings) -> Settings:
    """Return this rank's settings, with mode `disabled` if the setting `ranks` excludes it.

    Warn if each rank starts a separate run.
    """
    ranks = describe_rank()
    local_rank = ranks.get(LOCAL_RANK, 0)
    rank = ranks.get(RANK, local_rank)
    if (settings.ranks == "first" and rank) or (settings.ranks == "node" and local_rank):
        return settings.replace(mode="disabled")
    if rank == 1 and settings.run_id is None and settings.mode != "disabled":  # one warning, not hundreds
        logger.warning(
            "rank %d started a separate run, because it was given no id; pass the same id on all ranks (id=, or "
            "TENSORMETER_RUN_ID "
            "in the launcher's environment), or record one rank only (TENSORMETER_RANKS=first)",
            rank,
        )
    return settings


def _check_targets(settings: Settings) -> set[str]:
    """Read the OTLP targets, so that this process, and not only the agent, reports invalid ones.

    Returns:
        Names of the destinations that use gRPC.

    Raises:
        SettingsError: A destination has an invalid option.
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
    """Warn about destinations whose package is missing. Their data stays in the spool, and the run continues."""
    if settings.agent == "off" or describe_rank().get(RANK):  # one warning, not hundreds
        return
    for destination in settings.exporters:
        kind = destination.partition(":")[0]
        package = "grpc" if destination in by_grpc else _PACKAGE_OF.get(kind)
        if package and (problem := problem_with(package)):
            extra = "grpc" if destination in by_grpc else kind
            logger.warning(
                "%s: %s, so nothing is delivered to this destination; run pip install 'tensormeter[%s]', then deliver "
                "the recorded data with `tensormeter sync`",
                *(destination, problem, extra),
            )


def _in_notebook() -> bool:
    """Return whether this process runs a notebook or an IPython shell, where users often forget to finish a run."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _warn_of_signals(settings: Settings) -> None:
    """Warn about signals that a destination does not receive."""
    if settings.mode == "disabled" or describe_rank().get(RANK):  # one warning, not hundreds
        return
    for destination in settings.exporters:
        for omission in settings.excluded_signals(destination):
            logger.warning("%s: not sending %s, because %s", destination, omission.signal, omission.reason)


def _resolve(settings: Settings | Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> Settings:
    """Merge the other arguments of `init` into its `settings`."""
    if isinstance(settings, Settings):
        return settings.replace(**arguments)
    fields = dict(settings or {})
    unknown = sorted(set(fields) - Settings.names())
    if unknown:
        raise SettingsError(
            f"settings: there is no setting {unknown[0]!r}; expected {join_choices(*sorted(Settings.names()))}"
        )
    return Settings(**{**fields, **arguments})
