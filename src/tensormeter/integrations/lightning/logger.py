"""The logger for Lightning's Trainer and Fabric."""

import os
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Literal

from lightning_utilities.core.rank_zero import rank_zero_only

from tensormeter import Audio, Image, Run, Settings, Table, Video
from tensormeter.integrations.framework_run import continue_run, end_training, script_run, start_run
from tensormeter.integrations.lightning.base import DummyExperimentBase, LoggerBase
from tensormeter.integrations.shield import shielded

__all__ = ["TensormeterLogger"]

_DEFAULT_PROJECT: Final = "lightning_logs"


class IgnoredRun(DummyExperimentBase):
    """The experiment of all ranks but the first. It has all attributes of a run, and ignores all calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def phase(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        """Return a context manager that does nothing."""
        return nullcontext()

    step = phase


class TensormeterLogger(LoggerBase):
    """A logger that records to the script's current run. If there is none, it starts a run.

    Only the process with rank 0 records. The run starts with the first use of `experiment`, and ends with the process: `test`
    may follow `fit`. The metrics of `self.log` arrive as floats, because Lightning reads them from the device before it calls
    any logger. `TensormeterCallback` avoids this.
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        *,
        project: str | None = None,
        prefix: str = "",
        log_model: Literal["all"] | bool = False,
        checkpoint_name: str = "checkpoint",
        experiment: Run | None = None,
        config: dict[str, Any] | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Collection[str] | str | None = None,
        notes: str | None = None,
        resume: bool | str | None = None,
        settings: Settings | dict[str, Any] | None = None,
    ) -> None:
        """Create the logger. The arguments correspond to those of Lightning's `WandbLogger`.

        Args:
            name: Display name of the run. Default: the run's ID.
            save_dir: Folder in which Lightning stores checkpoints, in `PROJECT/RUN_ID/checkpoints`. The logger itself stores
                nothing there.
            version: ID of the run. An existing run is continued, see `resume`. Default: a random ID.
            offline: Whether to write the data to disk without delivering it.
            project: Name of the run's project. Default: TENSORMETER_PROJECT, else `lightning_logs`.
            prefix: Text before all names of metrics, joined with a hyphen.
            log_model: Whether to record where checkpoints are, with their size and digest: True for those that remain when
                the training ends, `"all"` for each one when it is saved.
            checkpoint_name: Name of the artifact whose versions are the checkpoints.
            experiment: Run to record to. Default: the script's current run, else a new one.
            config: See `tensormeter.init`.
            group: See `tensormeter.init`.
            job_type: See `tensormeter.init`.
            tags: See `tensormeter.init`.
            notes: See `tensormeter.init`.
            resume: See `tensormeter.init`.
            settings: See `tensormeter.init`.
        """
        super().__init__()
        self._experiment = experiment
        self._save_dir = os.fspath(save_dir)
        self._prefix = prefix
        self._log_model = log_model
        self._checkpoint_name = checkpoint_name
        self._options: dict[str, Any] = {
            "project": project,
            "name": name,
            "config": config,
            "id": version,
            "group": group,
            "job_type": job_type,
            "tags": tags,
            "notes": notes,
            "resume": resume,
            "mode": "offline" if offline else None,
            "settings": settings,
        }
        self._recorded_checkpoints: dict[str, float] = {}  # time of the last change, by path
        self._kept_checkpoints: dict[int, Any] = {}  # callbacks whose checkpoints are recorded at the end

    @property
    def experiment(self) -> Any:
        """The `Run` that the logger records to, which is started if necessary. On other ranks, it ignores all calls."""
        if rank_zero_only.rank > 0:
            return IgnoredRun()
        if self._experiment is None:
            self._experiment = script_run() or start_run(self._options, {"project": _DEFAULT_PROJECT})
        return self._experiment

    @property
    def name(self) -> str:
        """Name of the run's project. The run's own name is `experiment.name`."""
        if self._experiment is not None:
            return self._experiment.project
        return self._options["project"] or Settings.with_defaults({"project": _DEFAULT_PROJECT}).project

    @property
    def version(self) -> str | None:
        """ID of the run, or None if it is still unknown."""
        return self._experiment.id if self._experiment is not None else self._options["id"]

    @property
    def save_dir(self) -> str:
        """Folder in which Lightning stores checkpoints."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """Folder of the project's checkpoints."""
        return os.path.join(self._save_dir, self.name)

    @property
    def log_dir(self) -> str:
        """Folder of this run's checkpoints."""
        return os.path.join(self.root_dir, self.version or "")

    def __getstate__(self) -> dict[str, Any]:
        """Start the run before the logger is pickled, so that the processes of one `Trainer` record to the same run."""
        if rank_zero_only.rank == 0:
            _ = self.experiment
        return self.__dict__.copy()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record a row of metrics, and of all else that `Run.log` accepts."""
        self.save()
        if self._prefix:
            metrics = {f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}": value for name, value in metrics.items()}
        self.experiment.log(metrics, step)

    @rank_zero_only
    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add hyperparameters to the run's configuration, and metrics that belong to them to its summary."""
        self.save()
        self.experiment.config.update(params)
        if metrics:
            self.experiment.summary.update(metrics)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: Sequence[str] | None = None,
        data: Any = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record a table. See `Table` for the arguments."""
        self.log_metrics({key: Table(columns, data, dataframe=dataframe)}, step)

    def log_text(
        self,
        key: str,
        columns: Sequence[str] | None = None,
        data: Any = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record texts as a table. For a single text, use ``log_metrics({key: text})``."""
        self.log_table(key, columns, data, dataframe, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images: arrays, tensors, PIL images, figures or paths.

        Args:
            key: Name of the images.
            images: List of images.
            step: Step of the row. Default: one more than the step of the last row.
            kwargs: Lists with a `caption` or `dataformats` for each image. W&B's `masks` and `boxes` are not recorded.

        Raises:
            TypeError: `images` is not a list, or there is no such argument.
            ValueError: A list has another length.
        """
        self._log_media(Image, "images", key, images, step, kwargs, ignored=("masks", "boxes", "classes", "mode"))

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record audio clips: arrays, tensors or paths.

        Args:
            key: Name of the clips.
            audios: List of clips.
            step: Step of the row. Default: one more than the step of the last row.
            kwargs: Lists with a `caption` or `sample_rate` for each clip.

        Raises:
            TypeError: `audios` is not a list, or there is no such argument.
            ValueError: A list has another length.
        """
        self._log_media(Audio, "audios", key, audios, step, kwargs)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record videos: arrays, tensors or paths.

        Args:
            key: Name of the videos.
            videos: List of videos.
            step: Step of the row. Default: one more than the step of the last row.
            kwargs: Lists with a `caption`, `fps` or `dataformats` for each video. W&B's `format` is not needed.

        Raises:
            TypeError: `videos` is not a list, or there is no such argument.
            ValueError: A list has another length.
        """
        self._log_media(Video, "videos", key, videos, step, kwargs, ignored=("format",))

    def watch(self, model: Any, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True) -> None:
        """Record norms and distributions of a model's gradients or parameters. See `Run.watch`; there is no graph."""
        if log is not None:
            self.experiment.watch(model, log, every=log_freq)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Record checkpoints, or remember to do so at the end, as `log_model` states."""
        if self._log_model == "all" or (self._log_model and checkpoint_callback.save_top_k == -1):
            self._record_checkpoints(checkpoint_callback)
        elif self._log_model:
            self._kept_checkpoints[id(checkpoint_callback)] = checkpoint_callback

    @rank_zero_only
    def save(self) -> None:
        """Continue the run if another training has finished it. Lightning calls this method before `fit` and before `test`."""
        if self._experiment is not None:
            self._experiment = continue_run(self._experiment)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Record the checkpoints that remain. The run goes on: Lightning calls this method after `fit` and after `test`."""
        if self._experiment is not None:
            if status == "success":
                for checkpoint_callback in self._kept_checkpoints.values():
                    self._record_checkpoints(checkpoint_callback)
            end_training(self._experiment, "finished" if status == "success" else "failed")

    @shielded
    @rank_zero_only
    def _record_checkpoints(self, checkpoint_callback: Any) -> None:
        best = checkpoint_callback.best_model_path
        paths = {*checkpoint_callback.best_k_models, best, checkpoint_callback.last_model_path}
        changed = {path: os.path.getmtime(path) for path in paths if path and os.path.exists(path)}
        for path, time in sorted(changed.items(), key=lambda item: item[1]):
            if self._recorded_checkpoints.get(path) != time:
                self._recorded_checkpoints[path] = time
                aliases = ["latest", "best"] if path == best else ["latest"]
                self.experiment.log_artifact(Path(path), self._checkpoint_name, "model", aliases=aliases)

    def _log_media(
        self,
        kind: Callable[..., Any],
        argument: str,
        key: str,
        items: list[Any],
        step: int | None,
        options: Mapping[str, Sequence[Any]],
        *,
        ignored: Collection[str] = (),
    ) -> None:
        if not isinstance(items, list):
            raise TypeError(f'Expected a list as "{argument}", found {type(items)}')
        for name, values in options.items():
            if len(values) != len(items):
                raise ValueError(f"Expected {len(items)} items but only found {len(values)} for {name}")
        used = {name: values for name, values in options.items() if name not in ignored}
        media = [kind(item, **{name: values[i] for name, values in used.items()}) for i, item in enumerate(items)]
        self.log_metrics({key: media}, step)
