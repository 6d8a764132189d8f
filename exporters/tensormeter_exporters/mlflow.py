"""The `mlflow` destination: metrics in batches, parameters, tags, status, and artifacts.

Each run has one MLflow run, identified by the tag `tensormeter.run.id`, in the experiment named after the project.
Metrics of the first process keep their names; metrics of other processes are named `process-ID/NAME`. MLflow
deduplicates metrics by key, time in milliseconds, step and value, so a retried request changes nothing. Because of
MLflow's limits, times are truncated to milliseconds, and infinities become the largest double.

A refused batch is divided until the refused item is isolated. If a run or experiment was deleted in MLflow, delivery
waits until it is restored.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_BRANCH,
    MLFLOW_GIT_COMMIT,
    MLFLOW_GIT_REPO_URL,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
)

from tensormeter.conventions.semconv import ARTIFACT_EVENT, RUN_CODE, RUN_CONFIG, RUN_END, RUN_ID, RUN_START
from tensormeter.exporter import ExporterConfig, Outcome, Rejected, Request, Retry, Unauthorized
from tensormeter.otlp.media import Alert, Audio, Figure, Html, Image, Images, Table, Text, Video
from tensormeter.outages import is_outage
from tensormeter_exporters.base import DecodingExporter
from tensormeter_exporters.names import ChangedNames
from tensormeter_exporters.otlp_series import (
    ProcessRef,
    RunEvent,
    SteppedSeries,
    flatten,
    read_events,
    read_metrics,
    scalars,
)
from tensormeter_exporters.provenance import artifact_place, code_files, code_rows
from tensormeter_exporters.refused_items import RefusedItems
from tensormeter_exporters.series_names import SeriesNames

__all__ = ["MlflowExporter"]

_RUN_TAG: Final = RUN_ID
_PROCESS_TAG: Final = "tensormeter.process"
_LABEL_TAGS: Final = {"group": "tensormeter.group", "job_type": "tensormeter.job_type", "notes": MLFLOW_RUN_NOTE}
_SUMMARY_TAG: Final = "tensormeter.summary."
_ARTIFACT_TAG: Final = "tensormeter.artifact."
"""Prefix of tags whose values are the places of artifacts, by the artifact's name."""

_CODE_TAGS: Final = {
    "commit": MLFLOW_GIT_COMMIT,
    "branch": MLFLOW_GIT_BRANCH,
    "remote": MLFLOW_GIT_REPO_URL,
    "script": MLFLOW_SOURCE_NAME,
}

# MLflow's limits for batches and their items.
_MAX_METRICS: Final = 1000
_MAX_PARAMS: Final = 100
_MAX_VALUE: Final = 6000
_MAX_TAG: Final = 5000
_LONGEST_NAME: Final = 233
"""Maximum length of a name in characters: MLflow's limit of 250, minus the prefix `process-ID/` of other processes."""

_LONGEST_PATH: Final = 200
"""Maximum length of a path made from a key, in UTF-8 bytes.

File systems allow 255 bytes per path component, including step and extension.
"""

_UNSAFE: Final = re.compile(r"[^\w./: -]")
_UNSAFE_EXTENSION: Final = re.compile(r"[^a-z0-9]")

_RULE: Final = f"MLflow names can have at most {_LONGEST_NAME} characters: letters, digits and _ - . / :"
_PATH_RULE: Final = f"MLflow artifact paths can have at most {_LONGEST_PATH} bytes: letters, digits and _ - . / :"

_OWN_TAGS: Final = ("mlflow.", "tensormeter.")

_STATUS: Final = {"finished": "FINISHED", "failed": "FAILED", "crashed": "FAILED", "preempted": "KILLED"}
_UNAUTHORIZED: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"})
_PERMANENT: Final = frozenset({"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "INVALID_STATE"})
_GONE: Final = "RESOURCE_DOES_NOT_EXIST"
_INTERNAL: Final = "INTERNAL_ERROR"
_INACTIVE: Final = re.compile(
    r"(^|: )(The (run|experiment) \S+ must be in (the )?'active'|Could not create run under non-active experiment)"
)
"""MLflow's message about a deleted run or experiment. There is no error code for it."""

_ACCESS: Final = re.compile(r"credential|accessdenied|forbidden|unauthorized|authentication", re.IGNORECASE)
"""Names of exceptions that artifact stores raise when they deny access to the user."""

_ACCESS_CODE: Final = re.compile(r"\((AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|Forbidden)\)")
"""Error codes in the messages of S3 exceptions that mean denied access."""

_TEMPORARY_STATUS: Final = frozenset({401, 403, 404, 408, 425, 429, *range(500, 600)})

_INTERNAL_ERRORS: Final = 3
"""Number of consecutive internal MLflow errors for one request, after which an item is suspected as the cause."""

_REFUSED_THROUGHOUT: Final = 64
"""Number of refused items after which the rest of a request is skipped, if no item was stored."""

_EXTENSIONS: Final = {"image/jpeg": "jpg", "image/svg+xml": "svg", "audio/mpeg": "mp3"}


class _Deleted(Exception):  # noqa: N818 - a state that a person can end
    """A run or experiment was deleted in MLflow."""


class MlflowExporter(DecodingExporter):
    """The exporter of the `mlflow` destination. It implements `tensormeter.exporter.Exporter`.

    MLflow's client reads its credentials from `MLFLOW_TRACKING_TOKEN`, or from `MLFLOW_TRACKING_USERNAME` and
    `MLFLOW_TRACKING_PASSWORD`. This process changes three of the client's defaults: the timeout
    (`MLFLOW_HTTP_REQUEST_TIMEOUT`) equals the exporter's timeout, and retries and usage reports are off.

    Options:
        tracking_uri: Tracking URI. Default: `MLFLOW_TRACKING_URI`.
        experiment: Name of the experiment. Default: the project's name.
    """

    uses_token: Final = False

    media: ClassVar = {
        "text": "artifact `texts/KEY-STEP.txt`",
        "table": "artifact `tables/KEY-STEP.json`",
        "image": "artifact `images/KEY-STEP.png`",
        "images": "artifacts `images/KEY-STEP/0.png` ...",
        "video": "artifact `videos/KEY-STEP.mp4`",
        "audio": "artifact `audio/KEY-STEP.wav`",
        "figure": "artifact `figures/KEY-STEP.json`",
        "html": "artifact `html/KEY-STEP.html`",
    }

    def __init__(self, config: ExporterConfig) -> None:
        options = config.options_or(tracking_uri="", experiment="")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(config.timeout))))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._experiment = options["experiment"]
        self._client = MlflowClient(options["tracking_uri"] or None)
        self._runs: dict[tuple[str, str], tuple[str, str]] = {}
        name = config.destination or "mlflow"
        self._keys = ChangedNames(name, _RULE, _clean, _LONGEST_NAME)
        self._tags = ChangedNames(name, f"{_RULE}; the prefix `mlflow.` is reserved", _clean_tag, _LONGEST_NAME)
        self._series = SeriesNames(name, config.state, self._keys, _clean_part, _LONGEST_NAME)
        self._paths = ChangedNames(name, _PATH_RULE, _clean_path, _LONGEST_PATH, in_bytes=True)
        self._media: dict[tuple[str, str, str, str], int] = {}
        """Times of the artifacts that this agent has written, by run, process, kind and path."""
        self._failing = ""
        """ID of the last request that caused an internal MLflow error."""
        self._internal_errors = 0

    def export(self, request: Request) -> Outcome:
        try:
            return super().export(request)
        except _Deleted as error:
            return Retry(str(error))
        except MlflowException as error:
            if error.error_code == _GONE:
                self._runs.clear()  # the run was deleted permanently, so a new one is created
            if error.error_code == _INTERNAL:
                self._internal_errors = self._internal_errors + 1 if request.id == self._failing else 1
                self._failing = request.id
            return _outcome(error)

    def deliver(self, request: Request) -> Outcome:
        if request.signal == "metrics":
            return self._metrics(request.id, read_metrics(request))
        events = read_events(request)
        refused = RefusedItems(self._temporary(request.id, events[0].sender if events else None))
        stored = 0
        for run_event in refused.readable(events):
            with refused.item(_name_of(run_event)):
                self._log_event(run_event, refused)
                stored += 1
        return refused.outcome(stored)

    def _temporary(self, request: str, sender: ProcessRef | None) -> Callable[[Exception], bool]:
        """Return a function that returns whether an exception has a cause other than an item of the request."""
        item_may_be_the_cause = (
            sender is not None
            and request == self._failing
            and self._internal_errors >= _INTERNAL_ERRORS
            and self._takes_anything(sender)
        )

        def is_temporary(error: Exception) -> bool:
            if isinstance(error, MlflowException):
                if error.error_code == _INTERNAL:
                    return not (item_may_be_the_cause or _is_about_a_file(error)) or is_outage(error)
                return not isinstance(_outcome(error), Rejected)
            return isinstance(error, _Deleted) or is_outage(error) or _is_refused_user(error)

        return is_temporary

    def _takes_anything(self, sender: ProcessRef) -> bool:
        """Return whether MLflow stores a valid test item. If it does, an item of the request caused the internal error."""
        try:
            run, process = self._run(sender)
            self._client.set_tag(run, _PROCESS_TAG, process)
        except Exception:  # any exception means that MLflow does not work
            return False
        return True

    def _metrics(self, request: str, series: list[SteppedSeries]) -> Outcome:
        by_run: dict[str, list[Metric]] = {}
        self._series.begin(series)
        for stepped in series:
            run, process = self._run(stepped.sender)
            prefix = _prefix(stepped.sender, process)
            by_run.setdefault(run, []).extend(self._metrics_of(stepped, prefix))
        self._series.save()
        refused = RefusedItems(self._temporary(request, series[0].sender if series else None))
        stored = 0
        for run, metrics in by_run.items():
            for first in range(0, len(metrics), _MAX_METRICS):
                stored += self._log(run, "metrics", metrics[first : first + _MAX_METRICS], refused)
                if not stored and refused.count >= _REFUSED_THROUGHOUT:
                    break
        return refused.outcome(stored)

    def _metrics_of(self, stepped: SteppedSeries, prefix: str) -> Iterator[Metric]:
        milliseconds = stepped.series.times // 1_000_000
        for numbers in scalars(stepped):
            name, present = prefix + self._series.of(stepped, numbers.part), numbers.present
            columns = (numbers.values[present], milliseconds[present], stepped.steps[present])
            for value, at, step in zip(*(column.tolist() for column in columns), strict=True):
                yield Metric(name, float(value), at, step)

    def _log(self, run: str, kind: str, items: Sequence[Any], refused: RefusedItems, *, most: int = 0) -> int:
        """Log a batch, and divide it until refused items are isolated. Return the number of stored items.

        Args:
            run: ID of the MLflow run.
            kind: `metrics`, `params` or `tags`.
            items: Items of the batch.
            refused: Counter of refused items.
            most: Number of refused items of this batch after which the rest is skipped if no item was stored; 0 for
                `_REFUSED_THROUGHOUT`.
        """
        stored, waiting, limit = 0, [list(items)], refused.count + (most or _REFUSED_THROUGHOUT)
        while waiting and (stored or refused.count < limit):
            part = waiting.pop()
            attempt = refused if len(part) == 1 else RefusedItems(refused.is_temporary)
            before = attempt.count
            with attempt.item(f"{kind} {part[0].key}"):
                self._client.log_batch(run, synchronous=True, **{kind: part})
            if attempt.count == before:
                stored += len(part)
            elif len(part) > 1:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
        if waiting:
            refused.add(f"{kind}: MLflow refused every item that was tried", sum(map(len, waiting)))
        return stored

    def _log_event(self, run_event: RunEvent, refused: RefusedItems) -> None:
        """Log the content of an event."""
        run, process = self._run(run_event.sender)
        prefix = _prefix(run_event.sender, process)
        match run_event.media:
            case Table(key, columns, rows, chart):
                self._table(run, prefix + self._path(key, run_event), columns, rows, chart)
            case Image(key, data, media_type):
                self._artifact(run, f"images/{prefix}{self._path(key, run_event)}.{_extension(media_type)}", data)
            case Images(key, images):
                folder = f"images/{prefix}{self._path(key, run_event)}"
                for number, image in enumerate(images):
                    self._artifact(run, f"{folder}/{number}.{_extension(image.content_type)}", image.data)
            case Video(key, data, media_type):
                self._artifact(run, f"videos/{prefix}{self._path(key, run_event)}.{_extension(media_type)}", data)
            case Audio(key, data, media_type):
                self._artifact(run, f"audio/{prefix}{self._path(key, run_event)}.{_extension(media_type)}", data)
            case Html(key, text):
                self._artifact(run, f"html/{prefix}{self._path(key, run_event)}.html", text.encode(errors="replace"))
            case Figure(key, text):
                self._artifact(run, f"figures/{prefix}{self._path(key, run_event)}.json", text.encode(errors="replace"))
            case Text(key, text):
                self._artifact(run, f"texts/{prefix}{self._path(key, run_event)}.txt", text.encode(errors="replace"))
            case Alert(title, text, level):
                alert = {
                    "level": level,
                    "title": title,
                    "text": text,
                    "time": run_event.event.time,
                    "step": run_event.step,
                }
                self._artifact(run, f"alerts/{prefix}{run_event.event.time}.json", json.dumps(alert).encode())
            case None if run_event.event.name in (RUN_START, RUN_CONFIG):
                self._describe(run, run_event.body, refused)
                config = run_event.body.get("config")
                self._config(run, config if isinstance(config, Mapping) else {}, refused)
                summary = run_event.body.get("summary")
                self._summary(run, summary if isinstance(summary, Mapping) else {}, refused)
            case None if run_event.event.name == RUN_CODE:
                self._code(run, prefix, run_event.body, refused)
            case None if run_event.event.name == ARTIFACT_EVENT:
                tag = self._keys(f"{_ARTIFACT_TAG}{run_event.body.get('name', '')}")
                self._log(run, "tags", [RunTag(tag, artifact_place(run_event.body)[:_MAX_TAG])], refused)
            case None if run_event.event.name == RUN_END and process == run_event.sender.process:
                status = _STATUS.get(str(run_event.body.get("state")), "FINISHED")
                self._client.set_terminated(run, status, end_time=run_event.event.time // 1_000_000)

    def _code(self, run: str, prefix: str, body: Mapping[str, object], refused: RefusedItems) -> None:
        """Log the commit and the script as MLflow's own tags, and the longer texts as artifacts."""
        facts = dict(code_rows(body))
        tags = [RunTag(tag, facts[name][:_MAX_TAG]) for name, tag in _CODE_TAGS.items() if name in facts]
        if tags:
            self._log(run, "tags", tags, refused)
        for name, text in code_files(body).items():
            self._artifact(run, f"code/{prefix}{name}", text.encode(errors="replace"))

    def _path(self, key: str, run_event: RunEvent) -> str:
        """Return the path of an artifact, which consists of its key and step, or of its key and time if it has no step.

        If another artifact has the same kind, key and step, the time is appended.
        """
        time = run_event.event.time
        path = f"{self._paths(key)}-{time if run_event.step is None else run_event.step}"
        owner = self._media.setdefault(
            (run_event.sender.run, run_event.sender.process, run_event.event.name, path), time
        )
        return path if owner == time else f"{path}-{time}"

    def _table(
        self,
        run: str,
        path: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        chart: Mapping[str, Any] | None,
    ) -> None:
        """Log columns, rows and the chart as a JSON document. Images become separate files, and their cells contain the paths."""
        data = [list(row) for row in rows]
        for number, row in enumerate(data):
            for place, cell in enumerate(row):
                if isinstance(cell, Image):
                    row[place] = f"tables/{path}/{number}-{place}.{_extension(cell.content_type)}"
                    self._artifact(run, row[place], cell.data)
        document = {"columns": list(columns), "data": data} | ({} if chart is None else {"chart": dict(chart)})
        self._artifact(run, f"tables/{path}.json", json.dumps(document, default=str).encode())

    def _describe(self, run: str, body: Mapping[str, object], refused: RefusedItems) -> None:
        """Log group, job type, tags and notes as MLflow tags. Tags that users have edited in MLflow are not overwritten."""
        tags = body.get("tags")
        texts = {self._tags(tag): "true" for tag in tags if isinstance(tag, str)} if isinstance(tags, Sequence) else {}
        texts |= {tag: str(body[label]) for label, tag in _LABEL_TAGS.items() if body.get(label)}
        known = self._client.get_run(run).data.tags if texts else {}
        fresh = [RunTag(name, text[:_MAX_TAG]) for name, text in texts.items() if name not in known]
        if fresh:
            self._log(run, "tags", fresh, refused)

    def _config(self, run: str, config: Mapping[str, object], refused: RefusedItems) -> None:
        """Log the configuration as parameters. MLflow parameters are immutable, so changed values become tags."""
        known = self._client.get_run(run).data.params
        fresh, changed = [], []
        for key, value in flatten(config).items():
            name = self._keys(key)
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            if len(text) > _MAX_VALUE:
                refused.add(f"parameter {name} has {len(text)} characters, but MLflow's limit is {_MAX_VALUE}")
            elif name not in known:
                fresh.append(Param(name, text))
            elif known[name] != text:
                changed.append(RunTag(self._keys(f"tensormeter.config.{name}"), text))
        for kind, items in (("params", fresh), ("tags", changed)):
            for first in range(0, len(items), _MAX_PARAMS):
                self._log(run, kind, items[first : first + _MAX_PARAMS], refused, most=len(items))

    def _summary(self, run: str, summary: Mapping[str, object], refused: RefusedItems) -> None:
        """Log the values that the script wrote to the summary as tags. Null removes a value."""
        tags = []
        known = self._client.get_run(run).data.tags if summary else {}
        for key, value in _summary_values(summary, ""):
            name = self._keys(f"{_SUMMARY_TAG}{key}")
            if value is not None:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
                tags.append(RunTag(name, text[:_MAX_TAG]))
            elif name in known:
                self._client.delete_tag(run, name)
        if tags:
            self._log(run, "tags", tags, refused)

    def _artifact(self, run: str, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, name)
            file.write_bytes(data)
            self._client.log_artifact(run, str(file), folder)

    def _run(self, sender: ProcessRef) -> tuple[str, str]:
        """Return the IDs of the MLflow run and of the process whose metrics keep their names."""
        key = sender.project, sender.run
        if key not in self._runs:
            self._runs[key] = self._find_run(sender)
        return self._runs[key]

    def _find_run(self, sender: ProcessRef) -> tuple[str, str]:
        experiment = self._experiment_id(self._experiment or sender.project)
        quoted = sender.run.replace("'", "")
        runs = self._client.search_runs(
            [experiment],
            f"tags.`{_RUN_TAG}` = '{quoted}'",
            run_view_type=ViewType.ALL,
            order_by=["attributes.start_time ASC"],
        )
        active = [run for run in runs if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
        if active:
            run = active[0]
        elif runs:
            raise _Deleted(
                f"MLflow run {runs[0].info.run_id} was deleted; restore it in MLflow's UI or with `mlflow runs restore "
                f"--run-id {runs[0].info.run_id}`, or discard the pending data with `tensormeter spool purge`"
            )
        else:
            tags = {_RUN_TAG: quoted, _PROCESS_TAG: sender.process}
            run = self._client.create_run(experiment, tags=tags, run_name=_plain(sender.name))
        return run.info.run_id, run.data.tags.get(_PROCESS_TAG, sender.process)

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:
                experiment = self._client.get_experiment_by_name(name)  # another agent created the experiment
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise _Deleted(
                f"MLflow experiment {name!r} was deleted; restore it in MLflow's UI or with `mlflow experiments "
                "restore "
                f"--experiment-id {experiment.experiment_id}`, or choose another one with the option `experiment`"
            )
        return experiment.experiment_id


def _summary_values(values: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    """Yield names and values of a summary. Names of nested values are joined with slashes."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _summary_values(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _clean(name: str) -> str:
    """Return a name with only valid characters, and without path components that MLflow would change."""
    path = "/".join(part for part in _UNSAFE.sub("_", name).split("/") if part.strip("."))
    return (path.lstrip(".") if path.startswith("..") else path) or "_"


def _clean_tag(tag: str) -> str:
    return f"tag.{_clean(tag)}" if tag.startswith(_OWN_TAGS) else _clean(tag)


def _clean_part(text: str) -> str:
    """Return the composed part of a series name, with only valid characters."""
    return _UNSAFE.sub("_", text)


def _clean_path(key: str) -> str:
    """Convert a key to a relative path with only valid characters, and without components such as `..`."""
    return "/".join(part.strip() for part in _UNSAFE.sub("_", key).split("/") if part.strip(". ")) or "_"


def _extension(media_type: str) -> str:
    kind = _EXTENSIONS.get(media_type, media_type.partition("/")[2])
    return _UNSAFE_EXTENSION.sub("", kind)[:16] or "bin"


def _prefix(sender: ProcessRef, first: str) -> str:
    """Return the prefix for the metrics of a process, which is empty for the run's first process."""
    return "" if sender.process == first else f"process-{sender.process[:8]}/"


def _plain(name: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in name[:_LONGEST_NAME])


def _name_of(run_event: RunEvent) -> str:
    match run_event.media:
        case None:
            return run_event.event.name
        case Alert(title):
            return f"alert {title[:100]!r}"
        case media:
            return f"{media.EVENT.rpartition('.')[2]} {media.key[:100]!r}"


def _is_about_a_file(error: MlflowException) -> bool:
    """Return whether MLflow's file store failed to create a file with the item's name."""
    cause = error.__cause__ or error.__context__
    return isinstance(cause, OSError) and cause.errno is not None and not is_outage(cause)


def _is_refused_user(error: Exception) -> bool:
    """Return whether an artifact store denied access to the user, rather than refusing the artifact."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in _TEMPORARY_STATUS
    return _ACCESS.search(type(error).__name__) is not None or _ACCESS_CODE.search(str(error)) is not None


def _outcome(error: MlflowException) -> Outcome:
    reason = f"MLflow: {error.error_code}: {str(error.message)[:500]}"
    status: Any = error.get_http_status_code()  # type: ignore[no-untyped-call]
    if error.error_code in _UNAUTHORIZED or status in (401, 403):
        return Unauthorized(f"{reason}; set MLFLOW_TRACKING_TOKEN")
    if _INACTIVE.search(str(error.message)):
        return Retry(
            f"{reason}; restore it in MLflow's UI or with `mlflow runs restore` (for an experiment: `mlflow "
            "experiments "
            "restore`), or discard the pending data with `tensormeter spool purge`"
        )
    if error.error_code in _PERMANENT:
        return Rejected(reason)
    return Retry(reason)
