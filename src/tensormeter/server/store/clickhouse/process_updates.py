"""The update that a commit makes to a process. It is a row that ClickHouse merges with earlier rows of the process."""

from dataclasses import dataclass
from typing import Any, Final

from tensormeter.otlp.batch import Event
from tensormeter.server.store.models.points import Points, beginning, steps_at
from tensormeter.server.store.rules.lifecycle import config_time, lifecycle_update
from tensormeter.server.store.rules.resource_identity import Source

__all__ = ["COLUMNS", "NEVER", "ProcessUpdate"]

NEVER: Final = (1 << 63) - 1
"""Placeholder for a missing time or step. It exceeds every real value, so a minimum ignores it."""

_NO_NUMBER: Final = (1 << 64) - 1

COLUMNS: Final = {
    "run": "Q",
    "process": "s",
    "project": "s",
    "run_id": "s",
    "name": "Qs",
    "resource": "QIs",
    "seen": "Q",
    "created": "q",
    "updated": "q",
    "newest": "q",
    "first_start": "q",
    "started": "q",
    "ended": "qQs",
    "turned": "Q",
    "losses": "Qs",
    "config": "qQs",
    "tags": "Qs",
    "grp": "Qs",
    "notes": "Qs",
    "first_step": "q",
    "began": "q",
    "results": "qQs",
    "definitions": "qQs",
    "parent": "qQs",
    "job_type": "Qs",
}
"""Columns of the table `process` with their types, for `encode_rows`."""


@dataclass(slots=True)
class ProcessUpdate:
    """An update to one process. `number` and the numbers inside tuples are arrival numbers.

    Attributes:
        first_step, last_step: Lowest and highest step, in the second or a later attempt.
        has_new_series: Whether the commit stores the first points of any series of the process.
    """

    run: int
    source: Source
    number: int
    received: int
    created: int = NEVER
    newest: int = 0
    first_start: int = NEVER
    started: int = 0
    ended: tuple[int, int, str] = (0, 0, "")
    turned: int = 0
    losses: tuple[int, str] = (0, "")
    config: tuple[int, int, str] = (0, 0, "")
    tags: tuple[int, str] = (_NO_NUMBER, "")
    group: tuple[int, str] = (_NO_NUMBER, "")
    notes: tuple[int, str] = (_NO_NUMBER, "")
    first_step: int = NEVER
    last_step: int = -NEVER
    began: int = NEVER
    has_new_series: bool = False
    results: tuple[int, int, str] = (0, 0, "")
    definitions: tuple[int, int, str] = (0, 0, "")
    parent: tuple[int, int, str] = (0, 0, "")
    job_type: tuple[int, str] = (_NO_NUMBER, "")

    def add_times(self, first: int, newest: int) -> None:
        """Add the time range of points. For an event, `first` is its time and `newest` is 0."""
        self.created = min(self.created, first)
        self.newest = max(self.newest, min(newest, self.received))

    def add_steps(self, steps: Points) -> None:
        """Add the steps of a process in the second or a later attempt."""
        start = beginning(steps)
        if start is not None:
            self.first_step, self.began = min(self.first_step, start[0]), min(self.began, start[1])
            logged, stepped = steps_at(steps, steps.times)
            self.last_step = max(self.last_step, int(logged[stepped].max()))

    def add_lifecycle(self, event: Event, time: int, number: int) -> None:
        """Add the changes made by an event."""
        update = lifecycle_update(event)
        if update.losses is not None:
            self.losses = number, update.losses
        if update.starts:
            self.first_start = min(self.first_start, time)
            self.started = max(self.started, time)
            self.turned = number
        if update.end_state is not None:
            self.ended = max(self.ended, (time, number, update.end_state))
            self.turned = number
        if update.config is not None:
            self.config = max(self.config, (config_time(event, time, first=self.source.first), number, update.config))
        if update.results is not None:
            self.results = max(self.results, (time, number, update.results))
        if update.definitions is not None:
            self.definitions = max(self.definitions, (time, number, update.definitions))
        if update.parent is not None:
            self.parent = max(self.parent, (time, number, update.parent))
        if update.tags is not None:
            self.tags = min(self.tags, (number, update.tags))
        if update.group is not None:
            self.group = min(self.group, (number, update.group))
        if update.job_type is not None:
            self.job_type = min(self.job_type, (number, update.job_type))
        if update.notes is not None:
            self.notes = min(self.notes, (number, update.notes))

    def row(self, *, named: bool) -> list[Any]:
        """Return the values of `COLUMNS`, with an empty name and resource unless `named` is True."""
        source, number = self.source, self.number
        name = (number if source.is_named else 1, source.name) if named else (0, "")
        resource = (number, source.attempt, source.resource) if named else (0, 0, "")
        return [
            *(self.run, source.process, source.project, source.run_id, *name, *resource, number, self.created),
            *(self.received, self.newest, self.first_start, self.started, *self.ended, self.turned, *self.losses),
            *(*self.config, *self.tags, *self.group, *self.notes, self.first_step, self.began),
            *(*self.results, *self.definitions, *self.parent, *self.job_type),
        ]
