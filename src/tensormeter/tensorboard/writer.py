"""`SummaryWriter` with the methods of `torch.utils.tensorboard.SummaryWriter`. It records with tensormeter and needs no TensorBoard."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from numbers import Real
from types import TracebackType
from typing import Any, Final, Self

from tensormeter.logger import get_logger
from tensormeter.record.media.array_copy import is_array
from tensormeter.record.media.text import Text
from tensormeter.record.warn_once import WarnOnce, describe, shown
from tensormeter.session.run import Run
from tensormeter.tensorboard.file_writer import FileWriter
from tensormeter.tensorboard.ignored_methods import IgnoredMethods, ignore
from tensormeter.tensorboard.media_methods import MediaMethods
from tensormeter.tensorboard.writer_run import WriterRun, join_run, log_finished_run

__all__ = ["SummaryWriter"]

logger: Final = get_logger()

_CLOCK_SECONDS: Final = 60
"""Difference between a stated time and the clock above which a warning says that the stated time is not kept."""

_notices: Final = WarnOnce()


class SummaryWriter(MediaMethods, IgnoredMethods):
    """A writer of scalars and media, for scripts that use the class of this name from torch.

    The writer starts a run, whose name is the folder's path below `runs`, and `close` finishes it. If the script has started a run
    with `tensormeter.init`, the writer logs to this run and does not finish it. Writers of the same folder share a run, and
    writers of different folders, such as `runs/x/train` and `runs/x/val`, have separate runs in the group `x`.

    Methods return immediately, do not wait for a device, and do not raise for what is in a value. Tensors are not read with
    `.item()`. Values that cannot be recorded are counted, with one warning per tag. Thread-safe.

    `docs/from-tensorboard.md` lists what each method records.

    Attributes:
        log_dir: Folder of the writer. It is created, because scripts store checkpoints there, but stays empty.
        purge_step: Ignored; a later attempt at a run hides the steps that it repeats.
        max_queue: Ignored.
        flush_secs: Ignored.
        filename_suffix: Ignored.
        file_writer: Object that takes TensorBoard's messages; None after `close`, as in torch.
        all_writers: The same object by folder; None after `close`.
    """

    def __init__(
        self,
        log_dir: Any = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: float = 120,
        filename_suffix: str = "",
        *,
        run: Run | None = None,
        logdir: Any = None,
        write_to_disk: bool = True,
        comet_config: Any = None,
        **options: Any,
    ) -> None:
        """Start a run, or join one. The call takes about ten milliseconds and does not use the network.

        Args:
            log_dir: Folder, which names the run. Default: `runs/DATE_HOST`, followed by the comment.
            comment: Text to append to the default folder.
            purge_step: Ignored.
            max_queue: Ignored.
            flush_secs: Ignored.
            filename_suffix: Ignored.
            run: Run to log to, instead of starting one.
            logdir: Name of `log_dir` in tensorboardX.
            write_to_disk: Argument of tensorboardX; False records nothing.
            comet_config: Argument of tensorboardX, which is ignored.
            options: Arguments for `tensormeter.init`, such as `project=` and `config=`. With any of them, the writer starts a
                run even if the script has started one. Default project: `TENSORMETER_PROJECT`, or else "tensorboard".

        Raises:
            SettingsError: An option is invalid.
            TypeError: `tensormeter.init` has no such option.
        """
        log_dir = log_dir or logdir
        self._is_default = not log_dir
        if not log_dir:
            now = datetime.now().strftime("%b%d_%H-%M-%S")  # noqa: DTZ005 - local time, as torch's
            log_dir = os.path.join("runs", f"{now}_{socket.gethostname()}{comment}")
        self.log_dir = log_dir
        self.purge_step = purge_step
        self.max_queue = max_queue
        self.flush_secs = flush_secs
        self.filename_suffix = filename_suffix
        self.file_writer: FileWriter | None = None
        self.all_writers: dict[str, FileWriter] | None = None
        self._run = run
        self._options = options if write_to_disk else {**options, "mode": "disabled"}
        self._steps: dict[str, int] = {}
        self._hyperparameters: dict[str, Any] | None = None
        self._experiments = 1
        self._open: WriterRun | None = None
        self._make_folder()
        self._get_file_writer()

    @property
    def run(self) -> Run:
        """Run that receives the values. A closed writer starts another attempt at its run."""
        return self._joined().run

    def get_logdir(self) -> str:
        """Return the folder of the writer."""
        return os.fspath(self.log_dir) if isinstance(self.log_dir, str | os.PathLike) else str(self.log_dir)

    def add_scalar(
        self,
        tag: Any,
        scalar_value: Any,
        global_step: Any = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Record a number as float64. A tensor on a device is copied asynchronously, in stream order.

        Args:
            tag: Name of the metric.
            scalar_value: Number, or array or tensor with one element.
            global_step: Step. Default: one more than the last step of this tag.
            walltime: Ignored; points have the time of the call.
            new_style: Ignored.
            double_precision: Ignored; numbers always have double precision.
        """
        if walltime is not None:
            _check_time(walltime)
        if scalar_value.__class__ is str:
            scalar_value = _number_of(scalar_value)
        self._write(tag, scalar_value, global_step)

    def add_scalars(
        self, main_tag: Any, tag_scalar_dict: Mapping[str, Any], global_step: Any = None, walltime: float | None = None
    ) -> None:
        """Record several numbers as `MAIN_TAG/TAG`, in one row.

        Args:
            main_tag: First part of the names.
            tag_scalar_dict: Numbers by the second part of their names.
            global_step: Step. Default: one more than the last step of the main tag.
            walltime: Ignored.
        """
        if walltime is not None:
            _check_time(walltime)
        if not (isinstance(main_tag, str) and isinstance(tag_scalar_dict, Mapping)):
            self._write(main_tag, tag_scalar_dict, global_step)
            return
        joined, step = self._joined(), self._step_of(main_tag, global_step)
        start = f"{joined.find_prefix()}{main_tag}/"  # joined here, because rows without nested mappings cost less
        joined.run.log({f"{start}{tag}": value for tag, value in tag_scalar_dict.items()}, step)

    def add_text(self, tag: Any, text_string: Any, global_step: Any = None, walltime: float | None = None) -> None:
        """Record a text, which is shown as Markdown."""
        self._write(tag, Text(text_string, markdown=True), global_step)

    def add_hparams(
        self,
        hparam_dict: Any,
        metric_dict: Any,
        hparam_domain_discrete: Any = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        """Record hyperparameters as the run's configuration, and metrics as points and in its summary.

        If a second call states other hyperparameters, they describe another experiment. This becomes a separate run in the same
        group, unless the script has started the run itself.

        Args:
            hparam_dict: Hyperparameters by name.
            metric_dict: Metrics by name.
            hparam_domain_discrete: Ignored.
            run_name: Last part of the name of a separate run. Default: its number.
            global_step: Step of the metrics. Default: 0, or one more than the last step of a metric.
        """
        if not isinstance(hparam_dict, Mapping) or not isinstance(metric_dict, Mapping):
            _notices.once(
                "hparams",
                "add_hparams: expected dictionaries, got a %s and a %s; nothing is recorded",
                type(hparam_dict).__name__,
                type(metric_dict).__name__,
            )
            return
        if hparam_domain_discrete:
            ignore("add_hparams(hparam_domain_discrete=)", "the possible values of hyperparameters")
        joined = self._joined()
        hyperparameters, before = dict(hparam_dict), self._hyperparameters
        is_other = before is not None and any(
            name not in before or _differs(before[name], value) for name, value in hyperparameters.items()
        )
        if is_other and joined.owned:
            self._experiments += 1
            name = f"{joined.run.name}/{run_name or self._experiments}"
            try:
                log_finished_run(joined.run, name, hyperparameters, metric_dict, global_step)
            except Exception as error:  # the training goes on
                _notices.once("experiment", "add_hparams: cannot start a run for %s: %s", shown(name), describe(error))
            return
        self._hyperparameters = {**(before or {}), **hyperparameters}
        joined.run.config.update(hyperparameters)
        for name, value in metric_dict.items():
            self._write(name, value, global_step)
            if isinstance(value, bool | int | float):
                joined.run.summary[f"{joined.find_prefix()}{name}"] = value

    def flush(self) -> None:
        """Do nothing: the agent delivers values as they come, and a killed process loses none of them."""

    def close(self) -> None:
        """Finish the run that the writer has started, and wait up to `finish_timeout` seconds for delivery.

        If the run has other open writers, or the script has started it, it goes on. As in torch, a closed writer may be used
        again: it then starts another attempt at its run, which ends with the program.
        """
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Close the writer. The run fails if an exception ended the block."""
        self._leave(exc_type, exc_val, exc_tb)

    def _leave(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        joined, self._open = self._open, None
        self.file_writer = self.all_writers = None
        if joined is not None:
            joined.leave(kind, error, trace)

    def _get_file_writer(self) -> FileWriter:
        """Return the object that takes TensorBoard's messages. Some scripts use it."""
        self._joined()
        if self.file_writer is None:
            self.file_writer = FileWriter(self, self._step_of)
            self.all_writers = {self.get_logdir(): self.file_writer}
        return self.file_writer

    def _joined(self) -> WriterRun:
        """Return the run, which is opened again if the writer has been closed."""
        joined = self._open
        if joined is None:
            joined = self._open = join_run(self.get_logdir(), self._run, self._options, is_default=self._is_default)
        return joined

    def _write(self, tag: Any, value: Any, step: Any) -> None:
        joined = self._open or self._joined()
        try:
            if step.__class__ is int:
                self._steps[tag] = step
            else:
                step = self._step_of(tag, step)
            prefix = joined.prefix
            if prefix is None:
                prefix = joined.find_prefix()
            joined.run.log({prefix + tag if prefix else tag: value}, step)
        except TypeError as error:
            _notices.once(type(tag), "the tag %s is not recorded: %s; pass a string", shown(tag), describe(error))

    def _step_of(self, tag: Any, step: Any) -> Any:
        """Return the step of a value: the stated one as an integer, or one more than the last step of the tag."""
        if step is None:
            last = self._steps.get(tag)
            step = self._joined().first_step if last is None else last + 1
        elif isinstance(step, Real | str):
            with suppress(ValueError, OverflowError):  # `log` warns about invalid steps
                step = int(step)  # type: ignore[arg-type]
        if isinstance(step, int):
            self._steps[tag] = step
        return step

    def _make_folder(self) -> None:
        folder = self.get_logdir()
        if "://" in folder:
            return
        try:
            os.makedirs(folder, exist_ok=True)
        except (OSError, ValueError) as error:
            _notices.once(folder, "SummaryWriter: cannot create the folder %s: %s", shown(folder), describe(error))

    def __repr__(self) -> str:
        return f"<tensormeter.tensorboard.SummaryWriter {self.get_logdir()!r}>"


def _number_of(text: str) -> Any:
    """Return the number that a text states, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def _differs(one: Any, other: Any) -> bool:
    """Return whether two hyperparameters differ. Values that cannot be compared without a device are equal."""
    if is_array(one) or is_array(other):
        return False
    try:
        return bool(one != other)
    except Exception:  # the value's own code may raise anything
        return False


def _check_time(walltime: Any) -> None:
    if isinstance(walltime, int | float) and abs(walltime - time.time()) > _CLOCK_SECONDS:
        _notices.once(
            "walltime",
            "SummaryWriter ignores walltime=%s: points have the time of the call; use tensormeter import for old event files",
            walltime,
        )
