"""The function `init`, which takes all arguments of W&B's."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import tensormeter
from tensormeter.errors import SettingsError
from tensormeter.session.announcement import in_notebook
from tensormeter.setting_field import IDENTIFIER
from tensormeter.wandb import current
from tensormeter.wandb.environment import MODES, RESUMES, read_environment
from tensormeter.wandb.errors import UsageError
from tensormeter.wandb.functions import global_settings
from tensormeter.wandb.notices import warn_ignored, warn_once, warn_unknown
from tensormeter.wandb.sdk.wandb_config import read_config
from tensormeter.wandb.sdk.wandb_run import Run
from tensormeter.wandb.sdk.wandb_settings import Settings

__all__ = ["init"]

_REINITS: Final[Mapping[Any, str]] = {
    None: "default",
    "default": "default",
    True: "finish_previous",
    False: "return_previous",
    "finish_previous": "finish_previous",
    "return_previous": "return_previous",
    "create_new": "create_new",
}

_MOMENT: Final = re.compile(r"(?P<run>[^?]+)\?_step=(?P<step>\d{1,18})")
_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_ID: Final = 128


def init(
    entity: str | None = None,
    project: str | None = None,
    dir: Any = None,
    id: str | None = None,
    name: str | None = None,
    notes: str | None = None,
    tags: Any = None,
    config: Any = None,
    config_exclude_keys: Any = None,
    config_include_keys: Any = None,
    allow_val_change: bool | None = None,
    group: str | None = None,
    job_type: str | None = None,
    mode: str | None = None,
    force: bool | None = None,
    reinit: bool | str | None = None,
    resume: bool | str | None = None,
    resume_from: str | None = None,
    fork_from: str | None = None,
    save_code: bool | None = None,
    tensorboard: bool | None = None,
    sync_tensorboard: bool | None = None,
    monitor_gym: bool | None = None,
    settings: Any = None,
    anonymous: Any = None,
    **unknown: Any,
) -> Run:
    """Start a run, or return the current one (see `reinit`). `docs/from-wandb.md` describes what each argument becomes.

    An argument takes precedence over `settings`, over `setup`, over W&B's environment variable, and over that of tensormeter.
    The call takes about ten milliseconds and does not use the network.

    Args:
        entity: Value of `Run.entity`.
        project: Name of the project. Default: `uncategorized`.
        dir: Folder for `Run.dir`. Default: the working folder.
        id: ID of the run. Characters that tensormeter does not permit are replaced with `-`, with a warning.
        name: Display name of the run. Default: the ID.
        notes: Notes about the run.
        tags: Tags of the run.
        config: Configuration: a mapping, a namespace, or the path of a YAML or JSON file.
        config_exclude_keys: Names of entries to leave out.
        config_include_keys: Names of entries to keep.
        allow_val_change: Ignored: values may always change.
        group: Group of the run.
        job_type: Kind of work that the run does.
        mode: `online`, `offline` or `disabled`; `dryrun` means `offline`, and `shared` means `online`.
        force: Ignored: there is no login.
        reinit: Action if a run is in progress. `return_previous`, False or None returns it, `finish_previous` or True finishes
            it, and `create_new` starts another one next to it, which does not become `wandb.run`. In notebooks, None finishes it.
        resume: `allow` continues the run with this ID if it exists. `must` and `never` warn if it does not, or does. `auto` and
            True continue the last run of this folder if it did not finish.
        resume_from: `ID?_step=N`: Run to continue after a step. Later values of the earlier attempts are hidden.
        fork_from: `ID?_step=N`: Run and step from which this run begins.
        save_code: Whether to record the script's source and uncommitted changes. Default: the setting `record_code`.
        tensorboard: Another name of `sync_tensorboard`.
        sync_tensorboard: Whether to record the data of all SummaryWriters of this process.
        monitor_gym: Ignored with a warning.
        settings: `Settings`, or a mapping of settings.
        anonymous: Ignored.
        unknown: Arguments of other versions of W&B, which cause a warning.

    Raises:
        UsageError: An argument is invalid.
    """
    warn_unknown("wandb.init", unknown)
    if monitor_gym:
        warn_ignored("wandb.init(monitor_gym=)", "log episodes with wandb.log({'video': wandb.Video(path)})")
    given = {
        "entity": entity,
        "project": project,
        "dir": dir,
        "id": id,
        "name": name,
        "notes": notes,
        "tags": tags,
        "group": group,
        "job_type": job_type,
        "mode": mode,
        "reinit": reinit,
        "resume": resume,
        "save_code": save_code,
        "sync_tensorboard": tensorboard if sync_tensorboard is None else sync_tensorboard,
    }
    settings = _settings_of(settings)
    chosen = _choose(given, settings)
    previous = _previous_run(chosen("reinit"))
    if previous is not None:
        return previous
    values = {**current.before_init.as_dict(), **read_config(config, config_exclude_keys, config_include_keys)}
    folder = _folder(chosen("dir"))
    run_id, resume = _identity(chosen, folder, resume_from)
    moment = _moment("resume_from", resume_from)
    parent = _moment("fork_from", fork_from)
    is_further_run = _REINITS.get(chosen("reinit")) == "create_new"
    try:
        recorded = tensormeter.init(
            project=_text(chosen("project")) or None,
            name=_text(chosen("name")),
            config=values,
            id=run_id,
            group=_text(chosen("group")),
            job_type=_text(chosen("job_type")),
            tags=_tags(chosen("tags")),
            notes=_text(chosen("notes")),
            resume=resume,
            fork_from=None if parent is None else f"{parent[0]}@{parent[1]}",
            mode=_mode(chosen),
            settings=_recording_settings(chosen),
            defaults={"project": "uncategorized"},
            concurrent=is_further_run,
        )
    except SettingsError as error:
        raise UsageError(f"wandb.init: {error}") from error
    run = Run(
        recorded,
        values,
        entity=_text(chosen("entity")) or "",
        folder=folder,
        settings=settings,
        first_step=None if moment is None else moment[1] + 1,
        continues_config=not values,
    )
    current.clear_config()
    current.register(run, recorded)
    if not is_further_run:
        current.set_current(run)
    if chosen("resume") in ("auto", True) and not run.disabled:
        _remember(run, folder)
    if chosen("sync_tensorboard"):
        from tensormeter.tensorboard import sync

        sync.start(recorded)
    return run


def _settings_of(settings: Any) -> Settings:
    """Return the settings of a call, on top of those of `setup`.

    Raises:
        UsageError: They are neither `Settings` nor a mapping.
    """
    merged = Settings()
    merged.update(global_settings())
    if isinstance(settings, Settings | Mapping):
        merged.update(settings)
    elif hasattr(settings, "model_dump"):  # W&B's own class
        merged.update(settings.model_dump(exclude_unset=True))
    elif settings is not None:
        raise UsageError(f"wandb.init: expected Settings or a mapping as settings, got a {type(settings).__name__}")
    return merged


def _choose(given: Mapping[str, Any], settings: Settings) -> Callable[[str], Any]:
    """Return a function that returns the value of an argument: from the call, the settings or the environment.

    An empty text counts as missing, because it is the default of many command lines.
    """
    environment = read_environment()

    def choose(name: str) -> Any:
        for value in (given.get(name), settings.argument(name), environment.get(name)):
            if value is not None and not (isinstance(value, str) and value == ""):
                return value
        return None

    return choose


def _previous_run(reinit: Any) -> Run | None:
    """Return the run that `init` returns instead of starting one. Finishes previous runs if `reinit` asks for it.

    Raises:
        UsageError: The value of `reinit` is invalid.
    """
    try:
        action = _REINITS[reinit]
    except (KeyError, TypeError):
        raise UsageError(f"wandb.init: reinit: expected {', '.join(map(str, _REINITS))}, got {reinit!r}") from None
    active = current.active_runs()
    if not active or action == "create_new":
        return None
    if action == "finish_previous" or (action == "default" and in_notebook()):
        for run in reversed(active):
            run.finish()
        return None
    warn_once(
        "return_previous",
        "wandb.init: run %s is in progress, so init returned it; finish it first, or pass reinit='finish_previous' or "
        "reinit='create_new'",
        active[-1].id,
    )
    return active[-1]


def _identity(chosen: Callable[[str], Any], folder: Any, resume_from: Any) -> tuple[str | None, bool | str | None]:
    """Return the ID of the run, and the argument `resume` of `tensormeter.init`.

    Raises:
        UsageError: The value of `resume` is invalid.
    """
    run_id, resume = chosen("id"), chosen("resume")
    if resume is not None and not isinstance(resume, bool) and resume not in RESUMES:
        raise UsageError(f"wandb.init: resume: expected True, False, {', '.join(RESUMES)}, got {resume!r}")
    if resume in ("auto", True):
        run_id = run_id or _remembered(folder)
        resume = "allow"
    if moment := _moment("resume_from", resume_from):
        run_id, resume = moment[0], "allow"
    if resume in ("allow", "never", False) and run_id is None:
        resume = None
    return None if run_id is None else _valid_id(str(run_id)), resume or None


def _valid_id(run_id: str) -> str:
    if IDENTIFIER.fullmatch(run_id):
        return run_id
    valid = _NOT_IN_IDS.sub("-", run_id).lstrip("._-")[:_LONGEST_ID] or "run"
    warn_once(
        ("id", run_id),
        "wandb.init: the run ID %r becomes %r; use letters, digits, '.', '_' and '-'",
        run_id[:200],
        valid,
    )
    return valid


def _moment(argument: str, text: Any) -> tuple[str, int] | None:
    """Parse `ID?_step=N`.

    Raises:
        UsageError: The text has another form.
    """
    if text is None:
        return None
    parts = _MOMENT.fullmatch(str(text))
    if parts is None:
        raise UsageError(f"wandb.init: {argument}: expected ID?_step=N, got {str(text)[:200]!r}")
    return unquote(parts["run"]), int(parts["step"])


def _mode(chosen: Callable[[str], Any]) -> str | None:
    """Return the mode of the run.

    Raises:
        UsageError: It is invalid.
    """
    if chosen("disabled"):
        return "disabled"
    mode = chosen("mode")
    if mode is not None and mode not in MODES:
        raise UsageError(f"wandb.init: mode: expected {', '.join(MODES)}, got {mode!r}")
    return None if mode is None else MODES[mode]


def _recording_settings(chosen: Callable[[str], Any]) -> dict[str, Any]:
    """Return the settings of tensormeter that follow from W&B's."""
    fields: dict[str, Any] = {}
    if chosen("silent") is not None:
        fields["quiet"] = bool(chosen("silent"))
    if chosen("save_code") is not None:
        fields["record_code"] = bool(chosen("save_code"))
    if chosen("console") == "off":
        fields["console"] = "off"
    if chosen("x_disable_stats") or chosen("_disable_stats"):
        fields["sample_interval"] = 0.0
    return fields


def _folder(place: Any) -> str:
    """Return the folder for `Run.dir`.

    Raises:
        UsageError: The argument is not a path.
    """
    try:
        return os.fsdecode(place or ".")
    except TypeError as error:
        raise UsageError(f"wandb.init: dir: {error}") from None


def _tags(tags: Any) -> list[str] | None:
    """Return the tags of the run.

    Raises:
        UsageError: The argument is not a text or a collection.
    """
    if tags is None or isinstance(tags, str):
        return None if tags is None else [tags]
    if not isinstance(tags, Iterable):
        raise UsageError(f"wandb.init: tags: expected a list of texts, got a {type(tags).__name__}")
    return [str(tag) for tag in tags]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _resume_file(folder: Any) -> Path:
    return Path(os.path.abspath(folder), "wandb", "wandb-resume.json")


def _remembered(folder: Any) -> str | None:
    """Return the ID of the folder's last run with `resume="auto"`, if it did not finish."""
    try:
        document = json.loads(_resume_file(folder).read_text(encoding="utf-8"))
        run_id = document.get("run_id")
    except (OSError, ValueError, AttributeError):
        return None
    return run_id if isinstance(run_id, str) and run_id else None


def _remember(run: Run, folder: Any) -> None:
    """Store the run's ID until it finishes without an error."""
    path = _resume_file(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"run_id": run.id}), encoding="utf-8")
    except OSError as error:
        warn_once(path, "wandb.init(resume='auto'): cannot store the run's ID in %s: %s", path, error.strerror)
    run.forget_when_finished(path)
