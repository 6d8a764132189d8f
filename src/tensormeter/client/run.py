"""The `StoredRun` object, which represents a run on the server."""

from collections.abc import Mapping, Sequence
from typing import Any

from tensormeter.client.connection import Connection
from tensormeter.client.run_events import RunEvents
from tensormeter.client.run_parts import Summary, summaries_of
from tensormeter.client.run_points import RunPoints

__all__ = ["StoredRun"]


class StoredRun(RunPoints, RunEvents):
    """A run on the server.

    The attributes are a snapshot, which `refresh` updates. Each method sends requests and blocks until the server
    responds. It raises `TensormeterError` if the server does not respond or returns an error. Times are in nanoseconds
    since the Unix epoch.

    Attributes:
        id: ID of the run, unique within its project.
        project: Name of the run's project.
        name: Display name.
        state: "running", "finished", "failed", "crashed", "preempted" or "stalled".
        attempt: Number of the latest attempt, from 1.
        started: Earliest start that a process of the run reported; if none did, time of the earliest point or event.
        ended: Time when the run ended; None while it is in progress.
        last_time: Time when the server last received data of the run, by the server's clock.
        group: Name of the run's group; "" for none.
        job_type: Kind of work that the run does, such as "eval"; "" if unknown.
        tags: Tags of the run.
        notes: Notes about the run.
        archived: Whether the run is hidden from lists.
        points_stored: Number of points on the server, including those that record steps.
        lost: Number of points that the run's senders have dropped so far.
        lag: Seconds between the newest point and `last_time`; None if there are no points.
        definitions: Definitions of metrics by the script: mappings with `name`, `summary` and `step_metric`.
        parent: Run and step from which the run was forked, as `{"run": ID, "step": N}`; None if it was not forked.
        config: Configuration as JSON values, limited to the `fields` passed to `Client.runs`. NaN and infinities are
            the strings "NaN", "Infinity" and "-Infinity".
    """

    def __init__(self, connection: Connection, document: Mapping[str, Any], *, has_summary: bool = False) -> None:
        """Create a run from an API document. Use `Client.run` or `Client.runs` instead.

        Args:
            connection: Connection to the server.
            document: The run as JSON values.
            has_summary: Whether the document contains the summaries that were asked for. Otherwise, they are read later.
        """
        self._connection = connection
        self._load(document, has_summary=has_summary)

    def _load(self, document: Mapping[str, Any], *, has_summary: bool = False) -> None:
        self.id: str = document["id"]
        self.project: str = document["project"]
        self.name: str = document["name"]
        self.state: str = document["state"]
        self.attempt: int = document["attempt"]
        self.started = int(document["started"])
        self.ended = None if document["ended"] is None else int(document["ended"])
        self.last_time = int(document["last_time"])
        self.group: str = document["group"]
        self.job_type: str = document.get("job_type", "")
        self.tags: Sequence[str] = document["tags"]
        self.notes: str = document["notes"]
        self.archived: bool = document["archived"]
        self.points_stored: int = document["points"]
        self.lost: int = document["lost"]
        self.lag: float | None = document["lag"]
        self.definitions: Sequence[Mapping[str, str]] = document.get("definitions", ())
        self.parent: Mapping[str, Any] | None = document.get("parent")
        self.config: Mapping[str, Any] = document["config"]
        self._summary = summaries_of(document) if has_summary else None

    @property
    def summary(self) -> Mapping[str, Summary]:
        """Summary of each metric, limited to the `fields` passed to `Client.runs`.

        Without `fields`, the first use reads the summaries of all metrics and blocks meanwhile. This takes seconds for
        a run with hundreds of thousands of metrics; `series`, `metrics` and `points_of` need no summary.

        Raises:
            TensormeterError: The server does not respond or returns an error.
        """
        if self._summary is None:
            self._summary = summaries_of(self._connection.get("runs", self.id, project=self.project, fields="summary"))
        return self._summary

    def __repr__(self) -> str:
        return f"StoredRun({self.project!r}, {self.id!r}, name={self.name!r}, state={self.state!r})"

    def refresh(self) -> "StoredRun":
        """Update the attributes, with the complete configuration, and return this run.

        The summary is read again when it is next used.
        """
        self._load(self._connection.get("runs", self.id, project=self.project, fields="config"))
        return self

    def update(
        self,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        archived: bool | None = None,
    ) -> "StoredRun":
        """Edit the run, and return it. Data that arrives later does not overwrite the edits.

        Arguments that are None change nothing.

        Args:
            name: Display name.
            tags: Tags, which replace the current ones.
            notes: Notes about the run.
            group: Name of the run's group; "" for none.
            job_type: Kind of work that the run does; "" for none.
            archived: Whether to hide the run from lists.
        """
        labels = {"name": name, "tags": tags, "notes": notes, "group": group, "job_type": job_type}
        fields = {**labels, "archived": archived}
        changes = {key: value for key, value in fields.items() if value is not None}
        self._load(
            self._connection.send("PATCH", "runs", self.id, document=changes, project=self.project, fields="config")
        )
        return self
