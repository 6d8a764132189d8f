"""A tracker for Accelerate. Importing this module makes `Accelerator(log_with="tensormeter")` work."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process, register_tracker_class

from tensormeter import Image, Run, Table
from tensormeter.integrations.framework_run import check_options, script_run, start_run

__all__ = ["TensormeterTracker"]


class TensormeterTracker(GeneralTracker):
    """A tracker that records to the script's current run. If there is none, it starts a run.

    Only the main process records. Tensors are recorded without waiting for the device.
    """

    name = "tensormeter"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, project_name: str | None = None, **options: Any) -> None:
        """Create the tracker. `Accelerator.init_trackers` starts the run.

        Args:
            project_name: Name of the run's project. Accelerate passes that of `init_trackers`, unless the script itself
                creates the tracker. Default: TENSORMETER_PROJECT.
            options: Further arguments of `tensormeter.init`, such as `tags`, from
                ``init_trackers(..., init_kwargs={"tensormeter": {...}})``.

        Raises:
            TypeError, SettingsError: See `check_options`.
        """
        super().__init__()
        options = {"project": project_name, **options}
        check_options(options)
        self._options = options
        self._run: Run | None = None
        self._is_own = False

    @property
    def tracker(self) -> Run | None:
        """The run. None before `init_trackers`, and on all processes but the main one."""
        return self._run

    @on_main_process
    def start(self) -> None:
        """Choose or start the run."""
        if self._run is None or self._run.finished:
            run = script_run()
            self._is_own = run is None
            self._run = run or start_run(self._options, {})

    @on_main_process
    def store_init_configuration(self, values: Any) -> None:
        """Add values to the run's configuration."""
        if self._run is not None:
            self._run.config.update(values)

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record a row. See `Run.log` for the values and for `every` and `reduce`, which `log_kwargs` may contain."""
        if self._run is not None:
            self._run.log(values, step, **kwargs)

    @on_main_process
    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images.

        Args:
            values: Lists or batches of images by name. See `docs/logging.md` for what an image can be.
            step: Step of the row. Default: one more than the step of the last row.
            kwargs: `caption` and `dataformats` of `Image`.
        """
        if self._run is not None:
            self._run.log({name: Image(images, **kwargs) for name, images in values.items()}, step)

    @on_main_process
    def log_table(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        data: Any = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Record a table.

        Args:
            table_name: Name of the table.
            columns: Names of the columns.
            data: Rows of cells.
            dataframe: Frame of pandas or polars, instead of `columns` and `data`.
            step: Step of the row. Default: one more than the step of the last row.
            kwargs: Further arguments of `Table`, such as `chart`.
        """
        if self._run is not None:
            self._run.log({table_name: Table(columns, data, dataframe=dataframe, **kwargs)}, step)

    @on_main_process
    def finish(self) -> None:
        """End the run, if the tracker has started it."""
        if self._run is not None and self._is_own:
            self._run.finish()


register_tracker_class(TensormeterTracker)
