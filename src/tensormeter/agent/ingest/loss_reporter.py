"""Reports of items that the spool lost after the last process of a run ended."""

from typing import Final

from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.agent.spool.loss_report import Report, anonymous, described_in, due, encode_report
from tensormeter.agent.spool.spool import Spool
from tensormeter.conventions.labels import fit_label
from tensormeter.settings import Settings

__all__ = ["LossReporter"]

_MOST_REPORTS: Final = 3
"""Maximum number of reports per agent, because delivering a report may itself lose items."""


class LossReporter:
    """Reporter that adds loss events to a run's spool. Only the agent's main thread may use it."""

    def __init__(self, directory: RunDirectory, settings: Settings) -> None:
        self._directory = directory
        self._settings = settings
        self._reports = 0
        self._spare: Report | None = None
        """Report to use if the spool contains no report from any process."""

    def prepare(self, spool: Spool) -> None:
        """Determine which run the spool belongs to, before the requests that identify the run are delivered."""
        self._spare = None if spool.reports() else self._describe_run(spool)

    def report(self, spool: Spool) -> bool:
        """Report losses to all destinations, unless the last event contains them. Return whether a report was added.

        The end event of the last process was encoded when the process ended, but items may have been lost since then.
        """
        if self._settings.mode == "offline" or self._reports == _MOST_REPORTS:
            return False
        reports = spool.reports() or ([self._spare] if self._spare else [])
        report = due(reports, spool.losses()) if reports else None
        if report is None:
            return False
        self._reports += 1
        started, ended = spool.lifecycle(report.process)
        takers = self._settings.takers("logs", self._settings.exporters)
        spool.put([encode_report(report)], takers, report.process, {}, started=started, ended=ended, report=report)
        return True

    def _describe_run(self, spool: Spool) -> Report | None:
        """Return an empty report for a spool without reports; None if nothing identifies the run."""
        run = self._directory.run
        project = run["settings"].get("project")
        is_valid = isinstance(project, str) and 0 < len(project) == len(fit_label(project))
        if self._directory.damage or not is_valid:  # use a request instead, whose checksum proves its contents
            request = spool.oldest()
            report = None if request is None else described_in(request, run["host"])
            if report is not None or not is_valid:
                return report
        return anonymous(project, run["run_id"], str(run.get("name", run["run_id"])), run["host"])
