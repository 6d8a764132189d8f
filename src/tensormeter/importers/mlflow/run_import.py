"""Import of one MLflow run."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tensormeter.conventions.semconv import RUN_CODE, RUN_ID
from tensormeter.importers.artifact_records import artifact_record
from tensormeter.importers.coded_points import add_coded_points
from tensormeter.importers.mlflow.artifacts import ArtifactImport
from tensormeter.importers.mlflow.store import PARENT_TAG, MetricBlock, TrackedRun, TrackingStore
from tensormeter.importers.mlflow.texts import parse_text
from tensormeter.importers.registry import ImportContext, SourceError
from tensormeter.importers.run_requests import RunRequests, RunState
from tensormeter.otlp.batch import Event
from tensormeter.redaction import mask_addresses

__all__ = ["RunImport"]

_STATES: Final[Mapping[str, RunState]] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "preempted"}
"""States by status. Runs with another status, such as RUNNING, have not ended; their process is probably gone."""

_NOTE: Final = "mlflow.note.content"
_TABLES: Final = "mlflow.loggedArtifacts"
_COMMIT: Final = "mlflow.source.git.commit"
_BRANCH: Final = "mlflow.source.git.branch"
_REMOTE: Final = "mlflow.source.git.repoURL"
_SCRIPT: Final = "mlflow.source.name"
_USER: Final = "mlflow.user"

# Tags of tensormeter's destination `mlflow`.
_DESTINATION: Final = RUN_ID
_GROUP: Final = "tensormeter.group"
_SUMMARY: Final = "tensormeter.summary."
_CONFIG: Final = "tensormeter.config."
_ARTIFACT: Final = "tensormeter.artifact."
_PLAIN_TAG: Final = "tag."

_MILLISECOND: Final = 1_000_000
_LATEST: Final = (1 << 62) // _MILLISECOND
_POINT_BYTES: Final = 100
"""Approximate size of a point in a database, for the progress bar."""
_UNITS: Final = {"percentage": "%", "megabytes": "MBy", "watts": "W"}
_SYSTEM: Final = re.compile(r"system/.*_(percentage|megabytes|watts)")


class RunImport:
    """Import of one run of a tracking store."""

    def __init__(self, store: TrackingStore, run: TrackedRun, context: ImportContext, group: str) -> None:
        """
        Args:
            store: The tracking store.
            run: The run.
            context: The import.
            group: Group of nested runs, or "".
        """
        self._store = store
        self._run = run
        self._context = context
        self._tally = context.tally
        self._group = group
        self._latest = run.started or 0
        self._requests: RunRequests = context.run()

    def send(self) -> None:
        """Send the run. Points and artifacts that cannot be read are reported.

        Raises:
            TensormeterError: The requests could not be sent.
        """
        run, tags = self._run, self._run.tags
        started = _nanoseconds(run.started)
        words, config = self._words(), self._config()
        self._requests.start(
            self._context.project(run.experiment),
            run.run_id,
            self._context.name(run.name),
            started=started,
            config=config,
            group=tags.get(_GROUP) or self._group,
            tags=words,
            notes=tags.get(_NOTE, ""),
            resource=self._resource(),
        )
        self._code(started)
        try:
            for block in self._store.metrics(run):
                self._points(block)
        except SourceError as error:
            self._tally.report(f"run {run.run_id}: cannot read all points; those read so far were imported: {error}")
        ended = max(started, _nanoseconds(run.ended if run.ended is not None else self._latest))
        self._artifacts(ended)
        summary = {
            name.removeprefix(_SUMMARY): parse_text(text) for name, text in tags.items() if name.startswith(_SUMMARY)
        }
        if summary:
            self._requests.summary(summary, ended)
        for kind, count in run.left_out.items():
            self._tally.leave_out(kind, count)
        self._requests.finish(_STATES.get(run.status, "crashed"), ended)

    def _points(self, block: MetricBlock) -> None:
        size = len(block.times)
        valid = (block.times > 0) & (block.times < _LATEST)
        if not valid.all():
            self._tally.leave_out("points with invalid times", int(size - valid.sum()))
            columns = (column[valid] for column in (block.codes, block.steps, block.times, block.values))
            block = MetricBlock(block.names, *columns)  # type: ignore[arg-type]
        if not len(block.times):
            return
        self._latest = max(self._latest, int(block.times.max()))
        times = self._requests.place(block.steps, block.times * _MILLISECOND)
        if len(block.names) == 1:
            self._requests.placed_points(block.names[0], times, block.values, _unit_of(block.names[0]))
        else:
            add_coded_points(self._requests, block.names, block.codes, times, block.values, _unit_of)
        self._context.advance(size * _POINT_BYTES)

    def _words(self) -> list[str]:
        """Return the tags without a value, which are words."""
        return [
            name.removeprefix(_PLAIN_TAG) if self._is_destination else name
            for name, value in self._run.tags.items()
            if _is_own(name) and _is_word(value)
        ]

    def _config(self) -> dict[str, Any]:
        """Return the parameters, and the tags with values."""
        tags = self._run.tags
        config = {name: parse_text(text) for name, text in self._run.params.items()}
        for name, text in tags.items():  # parameters that changed after they were logged
            if name.startswith(_CONFIG):
                config[name.removeprefix(_CONFIG)] = parse_text(text)
        valued = {name: parse_text(value) for name, value in tags.items() if _is_own(name) and not _is_word(value)}
        if PARENT_TAG in tags:
            valued[PARENT_TAG] = tags[PARENT_TAG]
        if self._is_destination:
            valued[_DESTINATION] = tags[_DESTINATION]
        if valued:
            config["tags" if "tags" not in config else "mlflow.tags"] = valued
        return config

    @property
    def _is_destination(self) -> bool:
        """Whether tensormeter's destination `mlflow` has written the run."""
        return _DESTINATION in self._run.tags

    def _resource(self) -> dict[str, str]:
        tags = self._run.tags
        attributes = {
            "process.owner": tags.get(_USER, ""),
            "vcs.ref.head.revision": tags.get(_COMMIT, ""),
            "vcs.ref.head.name": tags.get(_BRANCH, ""),
            "vcs.repository.url.full": mask_addresses(tags.get(_REMOTE, "")),
        }
        return {name: value for name, value in attributes.items() if value}

    def _code(self, started: int) -> None:
        """Send the commit and the script, if MLflow has recorded them."""
        tags = self._run.tags
        git = {"commit": tags.get(_COMMIT, ""), "branch": tags.get(_BRANCH, "")}
        git["remote"] = mask_addresses(tags.get(_REMOTE, ""))
        script = tags.get(_SCRIPT, "")
        if any(git.values()) or script:
            body: dict[str, Any] = {
                "git": git if any(git.values()) else None,
                "source": {"path": script, "text": ""} if script else None,
                "packages": {},
            }
            self._requests.event(Event(RUN_CODE, started, body))

    def _artifacts(self, time: int) -> None:
        tags = self._run.tags
        for name, place in tags.items():
            if name.startswith(_ARTIFACT):
                self._requests.event(artifact_record(name.removeprefix(_ARTIFACT), place, time, kind="model"))
        try:
            source = self._store.artifacts(self._run)
            if source is not None:
                ArtifactImport(
                    source,
                    self._requests,
                    self._tally,
                    tables=list(_tables(tags.get(_TABLES, ""))),
                    time=time,
                    is_destination=self._is_destination,
                ).run()
        except SourceError as error:
            self._tally.report(f"run {self._run.run_id}: cannot read all artifacts: {error}")


def _nanoseconds(milliseconds: int | None) -> int:
    return milliseconds * _MILLISECOND if milliseconds is not None and 0 < milliseconds < _LATEST else 1


def _is_own(name: str) -> bool:
    """Return whether a user has set a tag, rather than MLflow or tensormeter's destination."""
    return not name.startswith(("mlflow.", "tensormeter."))


def _is_word(value: str) -> bool:
    return value.lower() in ("", "true")


def _unit_of(name: str) -> str:
    """Return the unit of a metric that MLflow's system metrics monitor has logged."""
    match = _SYSTEM.fullmatch(name)
    return "" if match is None else _UNITS[match[1]]


def _tables(text: str) -> Iterator[str]:
    """Yield the paths of tables in the tag that lists them."""
    try:
        entries = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("type") == "table" and isinstance(entry.get("path"), str):
            yield entry["path"]
