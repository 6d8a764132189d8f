"""Hydra: each job of a `@hydra.main` script is a run."""

from collections.abc import Mapping
from typing import Any, Final

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

import tensormeter
from tensormeter import Run, Settings
from tensormeter.integrations.framework_run import check_options
from tensormeter.integrations.shield import shielded

__all__ = ["TensormeterCallback"]

_PREFIX: Final = "hydra"
"""Name of the part of the configuration that describes the job."""


class TensormeterCallback(Callback):
    """Hydra callback that starts a run with the job's configuration, and finishes it when the job ends.

    The script records with `tensormeter.log` and the other functions of the package. A job that raises an exception is a
    failed run. A script that has started a run before Hydra starts the job keeps it: the callback adds the configuration,
    and does not finish the run. The jobs of a multirun always have their own runs, whose group is the sweep's folder.
    """

    def __init__(self, **options: Any) -> None:
        """
        Args:
            options: Arguments of `tensormeter.init`, such as `project` and `tags`. The default of `project` and `name` is the
                job's name. In a multirun, the job's number is appended to `name` and to `id`.

        Raises:
            TypeError, SettingsError: See `check_options`.
        """
        self._options = _plain(options)
        self._run: Run | None = None
        check_options(self._options)

    @shielded
    def on_job_start(self, config: DictConfig, *, task_function: Any = None, **kwargs: Any) -> None:
        """Start the run of a job, or add the configuration to the script's run."""
        del task_function, kwargs
        job = config.hydra.job
        is_sweep = config.hydra.mode == RunMode.MULTIRUN
        values = {name: _resolve(value) for name, value in _items(config) if name != _PREFIX}
        values[_PREFIX] = _describe_job(config)
        if (script := tensormeter.run) is not None and not is_sweep:
            script.config.update(values)
            return
        defaults: dict[str, Any] = {"project": job.name, "name": job.name}
        options = dict(self._options)
        if is_sweep:
            defaults["group"] = str(config.hydra.sweep.dir)
            options["name"] = f"{options.get('name') or Settings.with_defaults(defaults).name}-{job.num}"
            if run_id := options.get("id") or Settings().run_id:
                options["id"] = f"{run_id}-{job.num}"
        options["config"] = {**(options.get("config") or {}), **values}
        self._run = tensormeter.init(**options, defaults=defaults)

    @shielded
    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Finish the run of the job, if the callback has started it."""
        run, self._run = self._run, None
        if run is None:
            return
        result = job_return._return_value
        if job_return.status is JobStatus.FAILED and isinstance(result, BaseException):
            run.__exit__(type(result), result, result.__traceback__)
            return
        if isinstance(result, int | float):
            run.summary["return_value"] = result
        run.finish("failed" if job_return.status is JobStatus.FAILED else None)


def _describe_job(config: DictConfig) -> dict[str, Any]:
    """Return what identifies a job in its sweep, and where its files are."""
    hydra = config.hydra
    job = {name: OmegaConf.select(hydra.job, name, throw_on_missing=False) for name in ("name", "num", "id")}
    return {
        "job": {name: value for name, value in job.items() if value is not None},
        "overrides": _resolve(hydra.overrides.task),
        "choices": _resolve(hydra.runtime.choices),
        "output_dir": hydra.runtime.output_dir,
    }


def _resolve(values: Any) -> Any:
    """Return configuration values as plain values. Those that cannot be resolved become their text, such as `${name}`."""
    if not isinstance(values, DictConfig | ListConfig):
        return values
    try:
        return OmegaConf.to_container(values, resolve=True, enum_to_str=True)
    except Exception:  # resolvers may raise anything
        items = {name: _resolve(value) for name, value in _items(values)}
        return items if isinstance(values, DictConfig) else list(items.values())


def _items(values: DictConfig | ListConfig) -> list[tuple[str, Any]]:
    """Return the entries of a configuration by name. Each is plain, a configuration, or the text of what has no value."""
    names = list(values) if isinstance(values, DictConfig) else range(len(values))
    items = []
    for name in names:
        try:
            value = values[name]
        except Exception:  # a missing value, or a resolver that raises anything
            raw = OmegaConf.to_container(values, resolve=False)
            value = raw[name] if isinstance(raw, dict | list) else None
        items.append((str(name), value))
    return items


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the YAML file as plain values."""
    return {name: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for name, v in options.items()}
