"""MLflow tracking: metrics in batches, parameters, tags, status, artifacts.

One MLflow run for each run, found again by the tag `tensormeter.run.id`, in the experiment named like the project.
Metrics of its first process have their own names, those of further ones `process-ID/NAME`.
MLflow keeps a metric once for each (key, time in milliseconds, step, value), so a request that comes again changes nothing.
Times are cut to milliseconds, infinities become the largest double: MLflow's own limits.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from tensormeter.errors import EncodingError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Rejected, Request, Retry, Unauthorized
from tensormeter.otlp.media import Alert, Image, Table, Text
from tensormeter_exporters.points import (
    RUN_CONFIG,
    RUN_END,
    RUN_START,
    Speaker,
    Spoken,
    SteppedSeries,
    accepted,
    flatten,
    read_events,
    read_metrics,
    scalars,
)

__all__ = ["MlflowExporter"]

_RUN_TAG: Final = "tensormeter.run.id"
_PROCESS_TAG: Final = "tensormeter.process"
_GROUP_TAG: Final = "tensormeter.group"

# MLflow's limits on one batch, and on what is in it.
_MAX_METRICS: Final = 1000
_MAX_PARAMS: Final = 100
_MAX_VALUE: Final = 6000
_MAX_TAG: Final = 5000
_MAX_KEY: Final = 250
_UNSAFE: Final = re.compile(r"[^\w./: -]")

_STATUS: Final = {"finished": "FINISHED", "failed": "FAILED", "crashed": "FAILED", "preempted": "KILLED"}
_UNAUTHORIZED: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"})
_PERMANENT: Final = frozenset({"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "INVALID_STATE"})
_EXTENSIONS: Final = {"image/jpeg": "jpg", "image/svg+xml": "svg"}


class MlflowExporter:
    """See `tensormeter.exporter.Exporter` for the contract.

    MLflow's client reads its credentials from `MLFLOW_TRACKING_TOKEN` or `_USERNAME` and `_PASSWORD`, its timeout from
    `MLFLOW_HTTP_REQUEST_TIMEOUT`; where that and its count of retries are not set, they are set here to what delivery
    wants, and its reports about usage are switched off, for this process.

    Options:
        tracking_uri: As `MLFLOW_TRACKING_URI`, which it takes precedence over.
        experiment: Instead of the project's name.
    """

    def __init__(self, config: ExporterConfig) -> None:
        options = config.options_or(tracking_uri="", experiment="")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(config.timeout))))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._experiment = options["experiment"]
        self._client = MlflowClient(options["tracking_uri"] or None)
        self._runs: dict[tuple[str, str], tuple[str, str]] = {}

    def export(self, request: Request) -> Outcome:
        try:
            if request.signal == "metrics":
                return self._metrics(read_metrics(request))
            events = read_events(request)
            refused = [refusal for spoken in events for refusal in self._said(spoken)]
            outcome = accepted(events)
            return Accepted(outcome.rejected + len(refused), outcome.message or "; ".join(refused[:3]))
        except EncodingError as error:
            return Rejected(str(error))
        except MlflowException as error:
            return _outcome(error)

    def shutdown(self) -> None:
        pass

    def _metrics(self, found: list[SteppedSeries]) -> Outcome:
        by_run: dict[str, list[Metric]] = {}
        for stepped in found:
            run, process = self._run(stepped.speaker)
            prefix = "" if process == stepped.speaker.process else f"process-{stepped.speaker.process[:8]}/"
            by_run.setdefault(run, []).extend(_metrics_of(stepped, prefix))
        for run, metrics in by_run.items():
            for first in range(0, len(metrics), _MAX_METRICS):
                self._client.log_batch(run, metrics=metrics[first : first + _MAX_METRICS], synchronous=True)
        return Accepted()

    def _said(self, spoken: Spoken) -> Iterator[str]:
        """Log what an event carries; yields what MLflow refused."""
        run, process = self._run(spoken.speaker)
        match spoken.media:
            case Table(key, columns, rows):
                document = {"columns": list(columns), "data": [list(row) for row in rows]}
                self._artifact(
                    run, "tables", f"{key}-{spoken.axis_step}.json", json.dumps(document, default=str).encode()
                )
            case Image(key, data, media_type):
                kind = _EXTENSIONS.get(media_type, media_type.partition("/")[2])
                self._artifact(run, "images", f"{key}-{spoken.axis_step}.{kind}", data)
            case Text(key, text):
                self._artifact(run, "texts", f"{key}-{spoken.axis_step}.txt", text.encode(errors="replace"))
            case Alert(title, text, level):
                alert = {"level": level, "title": title, "text": text, "time": spoken.event.time, "step": spoken.step}
                self._artifact(run, "alerts", f"{spoken.event.time}.json", json.dumps(alert).encode())
            case None if spoken.event.name in (RUN_START, RUN_CONFIG):
                self._describe(run, spoken.body)
                config = spoken.body.get("config")
                yield from self._config(run, config if isinstance(config, Mapping) else {})
            case None if spoken.event.name == RUN_END and process == spoken.speaker.process:
                status = _STATUS.get(str(spoken.body.get("state")), "FINISHED")
                self._client.set_terminated(run, status, end_time=spoken.event.time // 1_000_000)

    def _describe(self, run: str, body: Mapping[str, object]) -> None:
        """Group, tags and notes: as tags of MLflow, which leave alone what people have written there meanwhile."""
        tags = body.get("tags")
        said = {_key(tag): "true" for tag in tags if isinstance(tag, str)} if isinstance(tags, Sequence) else {}
        if body.get("group"):
            said[_GROUP_TAG] = str(body["group"])
        if body.get("notes"):
            said[MLFLOW_RUN_NOTE] = str(body["notes"])
        known = self._client.get_run(run).data.tags if said else {}
        fresh = [RunTag(name, text[:_MAX_TAG]) for name, text in said.items() if name not in known]
        if fresh:
            self._client.log_batch(run, tags=fresh, synchronous=True)

    def _config(self, run: str, config: Mapping[str, object]) -> Iterator[str]:
        """Parameters; MLflow never changes one, so another value of a resumed run, or of an update, becomes a tag."""
        known = self._client.get_run(run).data.params
        fresh = []
        for key, value in flatten(config).items():
            name = _key(key)
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            if len(text) > _MAX_VALUE:
                yield f"parameter {name} is {len(text)} characters long, MLflow takes {_MAX_VALUE}"
            elif name not in known:
                fresh.append(Param(name, text))
            elif known[name] != text:
                self._client.set_tag(run, f"tensormeter.config.{name}", text)
        params = iter(fresh)
        while part := list(islice(params, _MAX_PARAMS)):
            self._client.log_batch(run, params=part, synchronous=True)

    def _artifact(self, run: str, folder: str, name: str, data: bytes) -> None:
        safe = "/".join(part for part in _UNSAFE.sub("_", name).split("/") if part.strip(". "))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, safe)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            parent = "/".join([folder, *Path(safe).parts[:-1]])
            self._client.log_artifact(run, str(path), parent)

    def _run(self, speaker: Speaker) -> tuple[str, str]:
        """MLflow's id of the run, and the process whose metrics have their own names."""
        key = speaker.project, speaker.run
        if key not in self._runs:
            self._runs[key] = self._find_run(speaker)
        return self._runs[key]

    def _find_run(self, speaker: Speaker) -> tuple[str, str]:
        experiment = self._experiment_id(self._experiment or speaker.project)
        quoted = speaker.run.replace("'", "")
        found = self._client.search_runs(
            [experiment],
            f"tags.`{_RUN_TAG}` = '{quoted}'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        if found:
            run = found[0]
        else:
            tags = {_RUN_TAG: quoted, _PROCESS_TAG: speaker.process}
            run = self._client.create_run(experiment, tags=tags, run_name=speaker.name)
        return run.info.run_id, run.data.tags.get(_PROCESS_TAG, speaker.process)

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:
                experiment = self._client.get_experiment_by_name(name)  # another agent was quicker
                if experiment is None:
                    raise
        return experiment.experiment_id


def _metrics_of(stepped: SteppedSeries, prefix: str) -> Iterator[Metric]:
    milliseconds = stepped.series.times // 1_000_000
    for numbers in scalars(stepped):
        name, present = _key(prefix + numbers.name), numbers.present
        columns = (numbers.values[present], milliseconds[present], stepped.steps[present])
        for value, at, step in zip(*(column.tolist() for column in columns), strict=True):
            yield Metric(name, float(value), at, step)


def _key(name: str) -> str:
    """As MLflow wants it: these characters only, and no path that it would change."""
    parts = [part for part in _UNSAFE.sub("_", name).split("/") if part.strip(".")]
    return "/".join(parts)[:_MAX_KEY] or "_"


def _outcome(error: MlflowException) -> Outcome:
    reason = f"MLflow: {error.error_code}: {str(error.message)[:500]}"
    status: Any = error.get_http_status_code()  # type: ignore[no-untyped-call]
    if error.error_code in _UNAUTHORIZED or status in (401, 403):
        return Unauthorized(f"{reason}; set MLFLOW_TRACKING_TOKEN")
    if error.error_code in _PERMANENT:
        return Rejected(reason)
    return Retry(reason)
