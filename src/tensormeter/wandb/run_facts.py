"""The facts about a run that scripts read, such as its name, its folder and its step."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tensormeter.ring.format import AUTOMATIC_STEPS
from tensormeter.session.run import Run as RecordedRun
from tensormeter.wandb.notices import warn_ignored, warn_once
from tensormeter.wandb.stepped_log import SteppedLog

__all__ = ["RunFacts"]


class RunFacts(SteppedLog):
    """Facts about a run.

    Attributes:
        entity: W&B user or team that `init` received, or "".
        pid: ID of the process that created this object.
        resumed: Whether the run had an earlier attempt.
        sweep_id: None, as for all runs without a sweep.
        start_time: Time when the run was started, in seconds since the Unix epoch.
    """

    is_adopted = False
    sweep_id = None
    sweep_url = None
    project_url = None

    def __init__(self, recorded: RecordedRun, entity: str, folder: str | Path | None, first_step: int | None) -> None:
        """
        Args:
            recorded: Run that records the data.
            entity: Value of `entity`.
            folder: Folder for `dir`. Default: the working folder.
            first_step: First step. Default: 0, or the step after the last one of earlier attempts.
        """
        super().__init__(recorded, first_step)
        self._starting_step = self._step
        self._server_step: int | None = None
        self._folder = Path(os.path.abspath(folder or "."))
        self._dir: Path | None = None
        self._name, self._tags, self._notes = recorded.name, recorded.tags, recorded.notes
        self.entity = entity
        self.pid = os.getpid()
        self.start_time = time.time()
        self.resumed = recorded.attempt > 1 or recorded._identity.resume

    @property
    def id(self) -> str:
        return self._recorded.id

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = str(name)
        self._recorded._rename(self._name)

    @property
    def project(self) -> str:
        return self._recorded.project

    @property
    def group(self) -> str:
        return self._recorded.group

    @property
    def job_type(self) -> str:
        return self._recorded.job_type

    @property
    def tags(self) -> tuple[str, ...]:
        return self._tags

    @tags.setter
    def tags(self, tags: Sequence[str]) -> None:
        self._tags = tuple(map(str, [tags] if isinstance(tags, str) else tags))
        warn_ignored("wandb.run.tags = ...", "edit the tags on the page, or pass tags= to wandb.init")

    @property
    def notes(self) -> str:
        return self._notes

    @notes.setter
    def notes(self, notes: str) -> None:
        self._notes = str(notes)
        warn_ignored("wandb.run.notes = ...", "edit the notes on the page, or pass notes= to wandb.init")

    @property
    def url(self) -> str | None:
        """Address of the run's page; None if the run is disabled or no experiment server receives it."""
        return self._recorded.url

    @property
    def path(self) -> str:
        """Entity (if given), project and ID, between slashes."""
        return "/".join(filter(None, (self.entity, self.project, self.id)))

    @property
    def dir(self) -> str:
        """Folder for files of the run, which is created when it is first asked for. Its files stay where they are.

        It lies in the folder `wandb` of the folder that `init` received, or in a temporary folder if the run is disabled.
        """
        if self._dir is None:
            started = time.strftime("%Y%m%d_%H%M%S", time.localtime(self.start_time))
            root = Path(tempfile.mkdtemp(prefix="wandb-")) if self.disabled else self._folder
            folder = root / "wandb" / f"run-{started}-{self.id}" / "files"
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                folder = Path(tempfile.mkdtemp(prefix="wandb-"))
                warn_once("dir", "wandb.run.dir: using %s, because %s: %s", folder, self._folder, error.strerror)
            self._dir = folder
        return str(self._dir)

    @property
    def sync_dir(self) -> str:
        return os.path.dirname(self.dir)

    @property
    def step(self) -> int:
        """Current step: that of the next `log` call without a step.

        In a resumed run, the server is asked for the last step of earlier attempts, once. The call then blocks for up to some
        seconds. If the server does not respond, the steps count from 0.
        """
        if self._step >= AUTOMATIC_STEPS:
            return self._step - AUTOMATIC_STEPS + self._first_step_on_server()
        return self._step

    @property
    def starting_step(self) -> int:
        """Step with which this attempt began."""
        if self._starting_step >= AUTOMATIC_STEPS:
            return self._first_step_on_server()
        return self._starting_step

    def _first_step_on_server(self) -> int:
        from tensormeter.wandb.resumed_run import first_step

        if self._server_step is None:
            self._server_step = first_step(self._recorded)
        return self._server_step

    @property
    def disabled(self) -> bool:
        return self._recorded.settings.mode == "disabled"

    @property
    def offline(self) -> bool:
        return self._recorded.settings.mode == "offline"

    @property
    def finished(self) -> bool:
        """Whether the run has finished in this process."""
        return self._recorded.finished

    def get_url(self) -> str | None:
        return self.url

    def get_project_url(self) -> None:
        return None

    def get_sweep_url(self) -> None:
        return None

    def project_name(self) -> str:
        return self.project
