"""The functions `init`, `log`, `finish` and `deferred_log`."""

import reprlib
import secrets
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tensormeter.conventions.semconv import LOCAL_RANK, RANK
from tensormeter.environment.otlp import belongs_to_opentelemetry, read_targets
from tensormeter.errors import SettingsError, join_choices
from tensormeter.exporter import check_exporters
from tensormeter.logger import get_logger
from tensormeter.packages import is_replaced, problem_with
from tensormeter.record.warn_once import WarnOnce
from tensormeter.resource import describe_rank
from tensormeter.session import open_runs
from tensormeter.session.announcement import in_notebook
from tensormeter.session.config.document import Document
from tensormeter.session.config.view import View
from tensormeter.session.leader import is_leader
from tensormeter.session.membership import Existence, RunIdentity
from tensormeter.session.open_runs import current_run
from tensormeter.session.run import Run
from tensormeter.settings import Settings

if TYPE_CHECKING:
    from tensormeter.record.deferred_log import DeferredLog
    from tensormeter.record.model_watch import Watch, Watched

__all__ = [
    "alert",
    "current_config",
    "current_summary",
    "deferred_log",
    "define_metric",
    "finish",
    "init",
    "log",
    "log_artifact",
    "watch",
]

logger: Final = get_logger()

_notices: Final = WarnOnce()

_PACKAGE_OF: Final = {
    "mlflow": "mlflow",
    "prometheus": "prometheus_client",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Import name of the Python package that a kind of destination requires."""

_RESUME: Final[Mapping[str, Existence]] = {"allow": "", "auto": "", "must": "must", "never": "never"}
"""Words that the argument `resume` of `init` accepts, and what they state about the existence of the run."""

_MOST_STEP: Final = 1 << 62

_ID_LETTERS: Final = string.ascii_lowercase + string.digits


def init(
    project: str | None = None,
    name: str | None = None,
    config: Any = None,
    *,
    id: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Collection[str] | str | None = None,
    notes: str | None = None,
    resume: bool | str | None = None,
    fork_from: str | None = None,
    mode: str | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    concurrent: bool = False,
) -> Run:
    """Start a run.

    The call takes about ten milliseconds and does not use the network. The run ends when `Run.finish` is called, when
    its `with` block ends, or when the interpreter exits. Its final state is:

    - `finished` if the program ended normally.
    - `failed` if it ended with an exception, or by `sys.exit` or `exit` with a nonzero status. Outside a `with` block,
      neither ``raise SystemExit(1)`` nor a `sys.exit` that was imported by name before tensormeter can be detected.
    - `preempted` if SIGTERM ended it.
    - `crashed` if the process disappeared without ending the run.

    In a notebook or an IPython shell, starting a run finishes all previous runs.

    If you pass the `id` of a run whose processes have all ended, `init` starts another attempt at that run. Rows logged
    without a step continue after the last step of the earlier attempts. The data of earlier attempts is kept. If the new
    attempt repeats a step of a metric, its values hide the earlier ones of that metric.

    Args:
        project: Name of the run's project: any text of up to 128 characters.
        name: Display name of the run. Default: the run's ID.
        config: Hyperparameters and other values that describe the run: a mapping, `argparse.Namespace`, dataclass instance, or
            another object with named values, nested as deep as you like. `docs/configuration.md` lists what each type becomes.
            Values that cannot be recorded are omitted, and one warning names them. Secrets are masked (see the
            setting `mask_config`). To add values later, write to `Run.config`.
        id: ID of the run. Pass the same ID on all ranks. Default: a random ID.
        group: Name of the run's group, for example the name of a sweep.
        job_type: Kind of work that the run does, such as `train` or `eval`.
        tags: Keywords for finding the run, as a collection or separated by commas.
        notes: Notes about the run. If users edit the notes, group or tags on the server, their edits take precedence.
        resume: Whether the run with this `id` exists. By default, and with `"allow"` or `"auto"`, the run is continued if it
            exists, and started otherwise. `True` states that it had an earlier attempt, on this or another machine.
            `"must"` and `"never"` warn if the run does not exist, or does. The check does not delay `init`.
        fork_from: `RUN@STEP`: ID of a run in the same project and the last of its steps that belong to this run, for example
            the step of the checkpoint that training starts from. Rows logged without a step begin after that step, and charts
            can show the parent's curve up to it.
        mode: `online` delivers the data, `offline` only writes it to disk, and `disabled` records nothing. Default:
            `online`.
        settings: A `Settings` object, or a mapping of its fields. The other arguments of `init` take precedence.
        defaults: Settings that apply if neither the arguments nor the environment give them, for libraries that call `init` on
            behalf of a script: ``defaults={"project": "my-library"}``. They have no effect on a `Settings` object.
        concurrent: Whether the run is one of several that a library records at once, such as the trials of a sweep. Such a run
            does not become the current run (see `Run.as_current`). In a notebook, it does not finish other runs, and they do not
            finish it.

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
        "job_type": job_type,
        "tags": tags,
        "notes": notes,
    }
    resolved = _resolve(settings, defaults, {key: value for key, value in fields.items() if value is not None})
    check_exporters([*resolved.exporters, *(option.partition(".")[0] for option in resolved.exporter_options)])
    resumed, existence = _check_resume(resume, resolved)
    parent = None if fork_from is None else _parse_parent(fork_from)
    if in_notebook() and not concurrent:
        open_runs.finish_replaced()
    resolved = _without_replaced_packages(_settings_of_rank(resolved))
    _warn_of_signals(resolved)
    if resolved.mode == "online":
        _warn_of_packages(resolved, _check_targets(resolved))
    run_id = resolved.run_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    name = resolved.name or run_id
    run = Run(RunIdentity(run_id, name, config, resolved, resume=resumed, existence=existence, forked_from=parent))
    run._begin()
    open_runs.add(run, concurrent=concurrent)
    return run


def log(
    values: Mapping[str, Any],
    step: int | None = None,
    *,
    every: int | None = None,
    reduce: str | None = None,
) -> None:
    """Record one row of metrics in the current run (see `tensormeter.run`). See `Run.log` for the arguments.

    Without a run, the row is not recorded. The first such call causes a warning.
    """
    run = current_run()
    if run is None:
        _warn_of_missing_run("log")
    elif every is None:  # in this form, the call costs least
        run.log(values, step)
    else:
        run.log(values, step, every=every, reduce=reduce)


def finish(state: str | int | None = None, *, exit_code: int | None = None, timeout: float | None = None) -> None:
    """End the current run, and wait for delivery. See `Run.finish` for the arguments. Without a run, this does nothing."""
    run = current_run()
    if run is not None:
        run.finish(state, exit_code=exit_code, timeout=timeout)


def define_metric(
    name: str,
    *,
    every: int | None = None,
    reduce: str = "mean",
    summary: str | None = None,
    step_metric: str | None = None,
) -> None:
    """Define how metrics of the current run are reduced, summarized and drawn. See `Run.define_metric` for the arguments.

    Raises:
        UsageError: See `Run.define_metric`.
    """
    run = current_run()
    if run is None:
        _warn_of_missing_run("define_metric")
    else:
        run.define_metric(name, every=every, reduce=reduce, summary=summary, step_metric=step_metric)


def alert(title: str, text: str = "", level: str = "INFO") -> None:
    """Record an alert in the current run. See `Run.alert` for the arguments."""
    run = current_run()
    if run is None:
        _warn_of_missing_run("alert")
    else:
        run.alert(title, text, level)


def log_artifact(
    path_or_uri: Any,
    name: str | None = None,
    type: str = "model",
    step: int | None = None,
    aliases: Iterable[str] | str = (),
) -> None:
    """Record where a file or folder of the current run is. See `Run.log_artifact` for the arguments."""
    run = current_run()
    if run is None:
        _warn_of_missing_run("log_artifact")
    else:
        run.log_artifact(path_or_uri, name, type, step, aliases)


def watch(
    model: Any, log: "Watched" = "gradients", *, every: int = 100, norms: bool = True, histograms: bool = True
) -> "Watch | None":
    """Log norms and distributions of a model's gradients or parameters to the current run. See `Run.watch` for the arguments.

    Returns:
        The watch, or None without a run.

    Raises:
        UsageError: An argument is invalid.
    """
    run = current_run()
    if run is None:
        _warn_of_missing_run("watch")
        return None
    return run.watch(model, log, every=every, norms=norms, histograms=histograms)


def current_config() -> View:
    """Return the configuration of the current run. Without a run, return an empty one whose changes cause a warning."""
    run = current_run()
    return _without_run("config") if run is None else run.config


def current_summary() -> View:
    """Return the summary of the current run. Without a run, return an empty one whose changes cause a warning."""
    run = current_run()
    return _without_run("summary") if run is None else run.summary


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
        first_step: Step of the first row; each further row increases the step by one. Default: 0, or in a later attempt, the
            step after the last step of the earlier attempts.

    Raises:
        UsageError: `names` or `capacity` is invalid.
    """
    from tensormeter.record.deferred_log import DeferredLog

    return DeferredLog(
        run._process.recorder if run._process is not None else None,
        names,
        capacity=capacity,
        device=device,
        first_step=first_step if first_step is not None else run._process.first_step if run._process is not None else 0,
    )


def _check_resume(resume: object, settings: Settings) -> tuple[bool, Existence]:
    """Return whether the argument `resume` of `init` states an earlier attempt, and whether a contradiction causes a warning.

    Raises:
        SettingsError: The value is invalid, or the run's ID is missing.
    """
    if not isinstance(resume, bool | None) and not (isinstance(resume, str) and resume in _RESUME):
        raise SettingsError(f"resume: expected {join_choices('True', 'False', *_RESUME)}, got {reprlib.repr(resume)}")
    existence = _RESUME[resume] if isinstance(resume, str) else ""
    if (resume is True or existence == "must") and settings.run_id is None:
        raise SettingsError("resume: the ID of the run to resume is missing; pass id=, or set TENSORMETER_RUN_ID")
    return resume is True, existence


def _parse_parent(text: object) -> tuple[str, int]:
    """Parse `RUN@STEP`.

    Raises:
        SettingsError: The text has another form.
    """
    run, _, step = text.rpartition("@") if isinstance(text, str) else ("", "", "")
    if not run or not step.isascii() or not step.isdecimal() or int(step[:20]) > _MOST_STEP:
        raise SettingsError(f'fork_from: expected "RUN@STEP", such as "my-run@1000", got {reprlib.repr(text)}')
    return run, int(step)


def _settings_of_rank(settings: Settings) -> Settings:
    """Return this rank's settings, with mode `disabled` if the setting `ranks` excludes it.

    Warn if each rank starts a separate run.
    """
    ranks = describe_rank()
    local_rank = ranks.get(LOCAL_RANK, 0)
    rank = ranks.get(RANK, local_rank)
    if (settings.ranks == "first" and rank) or (settings.ranks == "node" and local_rank):
        return settings.replace(mode="disabled")
    if (
        rank == 1 and settings.ranks != "this" and settings.run_id is None and settings.mode != "disabled"
    ):  # one warning, not hundreds
        logger.warning(
            "rank %d started a separate run, because it was given no id; pass the same id on all ranks (id=, or "
            "TENSORMETER_RUN_ID "
            "in the launcher's environment), or record one rank only (TENSORMETER_RANKS=first)",
            rank,
        )
    return settings


def _without_replaced_packages(settings: Settings) -> Settings:
    """Return settings with which the agent can import the packages of destinations.

    In this process, `tensormeter.wandb.install` may have put another module into the place of W&B's package.
    """
    kinds = {destination.partition(":")[0] for destination in settings.exporters}
    if settings.agent != "thread" or settings.mode != "online" or "wandb" not in kinds or not is_replaced("wandb"):
        return settings
    logger.warning(
        "the agent runs in a process instead of a thread, because the destination 'wandb' needs W&B's package, which "
        "wandb.install() has replaced in this process"
    )
    return settings.replace(agent="process")


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
    if settings.agent == "off" or not is_leader(settings):  # one warning, not hundreds
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


def _warn_of_missing_run(function: str) -> None:
    _notices.once(
        function,
        "tensormeter.%s: there is no unfinished run, so nothing is recorded; call tensormeter.init() first",
        function,
    )


def _without_run(noun: str) -> View:
    return View(Document(noun, 0, dict, lambda change: _warn_of_missing_run(noun)))


def _warn_of_signals(settings: Settings) -> None:
    """Warn about signals that a destination does not receive."""
    if settings.mode == "disabled" or not is_leader(settings):  # one warning, not hundreds
        return
    for destination in settings.exporters:
        for omission in settings.excluded_signals(destination):
            logger.warning("%s: not sending %s, because %s", destination, omission.signal, omission.reason)


def _resolve(
    settings: Settings | Mapping[str, Any] | None, defaults: Mapping[str, Any] | None, arguments: Mapping[str, Any]
) -> Settings:
    """Merge the other arguments of `init` into its `settings`."""
    if isinstance(settings, Settings):
        return settings.replace(**arguments)
    fields = _settings_by_name("settings", settings)
    return Settings.with_defaults(_settings_by_name("defaults", defaults), **{**fields, **arguments})


def _settings_by_name(argument: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values of settings that an argument of `init` contains.

    Raises:
        SettingsError: There is no setting of such a name.
    """
    fields = dict(values or {})
    unknown = sorted(set(fields) - Settings.names())
    if unknown:
        raise SettingsError(
            f"{argument}: there is no setting {unknown[0]!r}; expected {join_choices(*sorted(Settings.names()))}"
        )
    return fields
