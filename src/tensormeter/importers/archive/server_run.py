"""The run that an archived run becomes on the server: what the server has of it, and what no request can contain."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tensormeter.conventions.semconv import RUN_CONFIG, RUN_NAME, RUN_START
from tensormeter.importers.registry import ServerApi
from tensormeter.otlp.batch import Event

__all__ = ["EDITABLE", "SentFields", "ServerRun"]

EDITABLE: Final = ("name", "tags", "notes", "group", "job_type", "archived")
"""Fields that users can edit."""

_PAGE: Final = 5000
_TEXTS: Final = ("notes", "group", "job_type")


class SentFields:
    """Values of the editable fields that the processes of a run have sent, from which a user's edits are told apart."""

    def __init__(self, run_id: str, project: str) -> None:
        self._values: dict[str, list[Any]] = defaultdict(list, {name: [""] for name in _TEXTS})
        self._values |= {"tags": [[]], "archived": [False], "name": [run_id, project]}

    def add_resource(self, resource: Mapping[str, Any]) -> None:
        """Note the name in a resource."""
        self._add("name", resource.get(RUN_NAME))

    def add_event(self, event: Event) -> None:
        """Note the fields in an event that starts the run."""
        if event.name in (RUN_START, RUN_CONFIG) and isinstance(event.body, Mapping):
            for name in ("tags", *_TEXTS):
                self._add(name, event.body.get(name))

    def has(self, name: str, value: Any) -> bool:
        """Return whether a process has sent a value, or whether it is the default."""
        return value in self._values[name]

    def _add(self, name: str, value: Any) -> None:
        if value is not None and value not in self._values[name]:
            self._values[name].append(value)


class ServerRun:
    """A run on the server. Each method sends requests, and raises TensormeterError."""

    def __init__(self, api: ServerApi, project: str, run_id: str) -> None:
        self._api = api
        self._project = project
        self._id = run_id

    def points(self) -> int | None:
        """Return the number of points of the run; None if it does not exist."""
        condition = f'id = "{self._id}" and (archived = true or archived = false)'
        runs = self._api.get("runs", project=self._project, filter=condition, fields="", limit=1)["runs"]
        return int(runs[0]["points"]) if runs else None

    def processes(self) -> Mapping[str, Mapping[str, int]]:
        """Return the losses of the run's processes, by ID."""
        return {process["id"]: process.get("losses", {}) for process in self._details()["processes"]}

    def metrics(self) -> Iterator[Mapping[str, Any]]:
        """Yield the documents of the run's metrics."""
        after: str | None = None
        while True:
            page = self._api.get("runs", self._id, "metrics", project=self._project, limit=_PAGE, after=after)
            yield from page["metrics"]
            after = page["next"]
            if after is None:
                return

    def edit(self, wanted: Mapping[str, Any], sent: SentFields) -> list[str]:
        """Give the editable fields the wanted values, unless a user of this server has edited them.

        Returns:
            Names of the fields that keep another value.
        """
        document = self._details()
        different = [name for name in EDITABLE if name in document and document[name] != wanted[name]]
        changes: dict[str, Any] = {name: wanted[name] for name in different if sent.has(name, document[name])}
        if changes:
            self._api.send("PATCH", "runs", self._id, document=changes, project=self._project, fields="")
        return [name for name in different if name not in changes]

    def _details(self) -> dict[str, Any]:
        return self._api.get("runs", self._id, project=self._project, fields="")
