"""One W&B run, read from its `.wandb` file in two passes.

The first pass reads what describes the run, such as its latest name and configuration. The second pass reads the rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError

from tensormeter.conventions.nesting import flatten
from tensormeter.conventions.semconv import ARTIFACT_EVENT, GPU_MODELS, MEDIA_KEY, RUN_CONFIG, STEP_METRIC
from tensormeter.importers.bounded_parsing import parse_json, parse_message
from tensormeter.importers.confined_folder import ConfinedFolder
from tensormeter.importers.plain_values import plain_document
from tensormeter.importers.point_block import PointBlock
from tensormeter.importers.registry import FileSource, ImportContext, SourceError
from tensormeter.importers.run_requests import MOST_INTEGER, RunRequests, RunState
from tensormeter.importers.tally import Tally
from tensormeter.importers.wandb.charts import charts_of
from tensormeter.importers.wandb.history import History, nested_document
from tensormeter.importers.wandb.media import RunMedia
from tensormeter.importers.wandb.messages import Record, record_kind
from tensormeter.importers.wandb.output import ConsoleOutput
from tensormeter.importers.wandb.record_log import read_records
from tensormeter.otlp.batch import Attribute, Event
from tensormeter.redaction import mask_arguments

__all__ = ["WandbRun"]

_HISTORY, _OUTPUT, _STATS, _OUTPUT_RAW, _ARTIFACT, _ALERT = 2, 4, 7, 13, 8, 10
_BULK: Final = frozenset({_HISTORY, _OUTPUT, _STATS, _OUTPUT_RAW, _ARTIFACT, _ALERT})
"""Kinds of records that only the second pass reads."""
_DESCRIPTIONS: Final = frozenset({3, 5, 6, 12, 17, 18, 23, 26})
_READ_FILES: Final = ("media/", "config.yaml", "output.log", "wandb-metadata.json", "wandb-summary.json")
"""Beginnings of the paths of files whose contents are kept."""
_SECONDS: Final = 1_000_000_000
_MOST_FILES: Final = 10_000
_LARGEST_METADATA: Final = 1 << 20


@dataclass
class _Description:
    """Description of a run, collected from its records.

    Attributes:
        run: Latest record of the run; None if there is none.
        exit: Record of the end; None if the process was killed.
    """

    run: Any = None
    exit: Any = None
    environment: Any = None
    preempted: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    definitions: list[dict[str, str]] = field(default_factory=list)
    other_files: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class WandbRun(FileSource):
    """A run in a `.wandb` file.

    Attributes:
        path: Path of the file.
        attempt: Number of the attempt, from 1. Each resumption of a run has a separate folder.
    """

    attempt: int = 1

    @property
    def size(self) -> int:
        return 2 * super().size  # it is read twice

    def send(self, context: ImportContext) -> None:
        """Send the run. See `registry.RunSource`."""
        tally = context.tally
        description = self._describe(context)
        run = description.run
        if run is None:
            raise SourceError(f"{self.path}: has no readable record of a run; left it out")
        requests = context.run()
        started = _nanoseconds(run.start_time) or self.path.stat().st_mtime_ns
        config = {key: value for key, value in description.config.items() if key != "_wandb"}
        requests.start(
            context.project(run.project),
            run.run_id or self.path.stem.removeprefix("run-"),
            context.name(run.display_name or run.run_id),
            started=started,
            config=config,
            group=run.run_group or run.sweep_id,
            job_type=run.job_type,
            tags=list(run.tags),
            notes=run.notes,
            resource=_resource(run, description.environment or self._metadata()),
            attempt=self.attempt,
        )
        media = RunMedia(requests, tally, self.path.parent / "files", charts_of(description.config))
        history = History(requests, tally, media, started)
        reader = _Reader(requests, tally, history, started)
        for data in read_records(self.path, advance=context.advance):
            kind = record_kind(data)
            if kind in _BULK:
                try:
                    record = parse_message(Record, data)
                except DecodeError:
                    tally.leave_out("damaged W&B records")
                    continue
                reader.add(kind, record, data)
        history.flush()
        reader.flush()
        if not reader.has_output:
            self._read_output(requests, history.last_time)
        ended = max(reader.last_time, started)
        self._summarize(requests, description, history.names, ended)
        tally.leave_out("files of W&B runs, such as requirements and code", len(description.other_files))
        state, message = _end_of(description)
        requests.finish(state, ended, message)

    def _describe(self, context: ImportContext) -> _Description:
        description, tally = _Description(), context.tally
        for data in read_records(self.path, advance=context.advance, damage=tally.report):
            kind = record_kind(data)
            if kind not in _DESCRIPTIONS:
                continue
            try:
                record = parse_message(Record, data)
            except DecodeError:
                tally.leave_out("damaged W&B records")
                continue
            _note(description, kind, record, tally)
        return description

    def _metadata(self) -> Any:
        """Return the environment from `wandb-metadata.json`, which older versions of wandb write, or None."""
        try:
            folder = ConfinedFolder(self.path.parent / "files")
            document = parse_json(folder.read("wandb-metadata.json", _LARGEST_METADATA))
        except (SourceError, ValueError):
            return None
        if not isinstance(document, Mapping):
            return None
        environment = Record().environment
        for name in ("os", "python", "program", "root", "host", "executable"):
            if isinstance(text := document.get(name), str):
                setattr(environment, name, text)
        if isinstance(arguments := document.get("args"), list):
            environment.args.extend(text for text in arguments if isinstance(text, str))
        git = document.get("git")
        if isinstance(git, Mapping):
            environment.git.remote_url = str(git.get("remote") or "")
            environment.git.commit = str(git.get("commit") or "")
        return environment

    def _read_output(self, requests: RunRequests, time: int) -> None:
        """Send the lines of `output.log`, which have no times, if the file contains no output."""
        path = self.path.parent / "files" / "output.log"
        if path.is_file() and not path.is_symlink():
            output = ConsoleOutput(requests)
            with path.open("r", encoding="utf-8", errors="replace", newline="") as file:
                while text := file.read(1 << 16):
                    output.add(1, time, text)
            output.flush(time)

    def _summarize(self, requests: RunRequests, description: _Description, metrics: set[str], time: int) -> None:
        """Send the values that the script wrote to the summary, and the definitions of metrics.

        W&B's summary also has the latest value or another statistic of each metric, which a server computes itself.
        """
        summary = flatten({key: value for key, value in description.summary.items() if not key.startswith("_")})
        own = {}
        for name, value in summary.items():
            metric = name.replace("/", ".")
            statistic = metric.rpartition(".")[0]
            if name in metrics or metric in metrics or statistic in metrics or isinstance(value, Mapping):
                continue
            if not _is_media(description.summary, name):
                own[name] = value
        if own:
            requests.summary(own, time)
        if description.definitions:
            body = {"definitions": [dict(definition) for definition in description.definitions]}
            requests.event(Event(RUN_CONFIG, time + 1, body))


class _Reader:
    """Reader of the records of the second pass."""

    def __init__(self, requests: RunRequests, tally: Tally, history: History, started: int) -> None:
        self.has_output = False
        self.last_time = started
        self._requests = requests
        self._tally = tally
        self._history = history
        self._stats = PointBlock(requests, has_steps=False)
        self._output = ConsoleOutput(requests)

    def add(self, kind: int, record: Any, data: bytes) -> None:
        match kind:
            case 2:
                self._history.add(record.history, data)
                self.last_time = max(self.last_time, self._history.last_time)
            case 7:
                self._add_stats(record.stats)
            case 4 | 13:
                output = record.output_raw if kind == _OUTPUT_RAW else record.output
                time = _nanoseconds(output.timestamp) or self.last_time
                self.has_output = True
                self.last_time = max(self.last_time, time)
                self._output.add(output.output_type, time, output.line)
            case 10:
                self._add_alert(record.alert)
            case _:
                self._add_artifact(record.artifact)

    def flush(self) -> None:
        self._stats.flush()
        self._output.flush(self.last_time)

    def _add_stats(self, stats: Any) -> None:
        time = _nanoseconds(stats.timestamp) or self.last_time
        self.last_time = max(self.last_time, time)
        for item in stats.item:
            text = item.value_json.encode()
            try:
                float(text)
            except ValueError:
                self._tally.leave_out("system statistics that are not numbers")
                continue
            column = self._stats.column(f"system.{item.key}")
            column.rows.append(self._stats.row)
            column.texts.append(text)
        self._stats.end_row(0, time, len(stats.item))

    def _add_alert(self, alert: Any) -> None:
        level = alert.level.upper()
        step = self._history.last_step
        self._requests.item(
            "alert",
            alert.title,
            step if step >= 0 else None,
            self.last_time,
            text=alert.text,
            level=level if level in ("INFO", "WARN", "ERROR") else "INFO",
        )

    def _add_artifact(self, artifact: Any) -> None:
        """Add the record of an artifact. W&B's own artifacts, such as those of tables, are internal."""
        if artifact.type in ("run_table", "job", "code", "wandb-history"):
            return
        try:
            metadata = plain_document(parse_json(artifact.metadata)) if artifact.metadata else {}
        except (ValueError, AttributeError):
            metadata = {}
        entries = artifact.manifest.contents
        body: dict[str, Any] = {
            "name": artifact.name,
            "type": artifact.type,
            "aliases": list(artifact.aliases),
            "uri": f"wandb-artifact:{artifact.name}",
            "digest": f"md5:{artifact.digest}" if artifact.digest else "",
            "size": sum(entry.size for entry in entries),
            "files": len(entries),
            "metadata": metadata,
        }
        step = self._history.last_step
        attributes: dict[str, Attribute] = {MEDIA_KEY: artifact.name, **({STEP_METRIC: step} if step >= 0 else {})}
        self._requests.event(Event(ARTIFACT_EVENT, self.last_time, body, attributes))
        self._tally.leave_out("contents of artifacts (their records are kept)", len(entries))


def _note(description: _Description, kind: int, record: Any, tally: Tally) -> None:
    match kind:
        case 17:
            description.run = record.run
            own = description.config.get("_wandb")
            nested_document(
                record.run.config.update, description.config, tally, "configuration values that are not JSON"
            )
            if own:  # a later record of the run has an empty one
                description.config["_wandb"] = own
            nested_document(record.run.summary.update, description.summary, tally, "summary values that are not JSON")
        case 5:
            nested_document(record.config.update, description.config, tally, "configuration values that are not JSON")
            _remove(record.config.remove, description.config)
        case 3:
            nested_document(record.summary.update, description.summary, tally, "summary values that are not JSON")
            _remove(record.summary.remove, description.summary)
        case 6:
            for file in record.files.files:
                if not file.path.startswith(_READ_FILES) and len(description.other_files) < _MOST_FILES:
                    description.other_files.add(file.path)
        case 12:
            _define(description, record.metric)
        case 18:
            description.exit = record.exit
        case 23:
            description.preempted = True
        case _:
            if description.environment is None:
                description.environment = record.environment
            else:  # a second record adds hardware
                description.environment.MergeFrom(record.environment)


def _remove(items: Any, document: dict[str, Any]) -> None:
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        place: Any = document
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)


def _define(description: _Description, metric: Any) -> None:
    name = metric.name or metric.glob_name
    summary = next((part for part in ("none", "max", "min", "mean", "last") if getattr(metric.summary, part)), "")
    definition = {"name": name}
    if metric.step_metric:
        definition["step_metric"] = metric.step_metric
    if summary:
        definition["summary"] = summary
    if name and len(definition) > 1:
        description.definitions.append(definition)


def _end_of(description: _Description) -> tuple[RunState, str]:
    if description.exit is None:
        if description.preempted:
            return "preempted", "W&B recorded a preemption"
        return "crashed", "the file has no record of the end of the run"
    code = description.exit.exit_code
    return ("finished", "") if code == 0 else ("failed", f"exit code {code}")


def _resource(run: Any, environment: Any) -> dict[str, Any]:
    attributes = {
        "host.name": run.host,
        "vcs.repository.url.full": run.git.remote_url,
        "vcs.ref.head.revision": run.git.commit,
    }
    if environment is not None:
        attributes |= {
            "host.name": run.host or environment.host,
            "os.description": environment.os,
            "process.runtime.version": environment.python.rpartition(" ")[2],
            "process.executable.path": environment.executable,
            "process.working_directory": environment.root,
            GPU_MODELS: [environment.gpu_type] if environment.gpu_type else [],
            "vcs.repository.url.full": run.git.remote_url or environment.git.remote_url,
            "vcs.ref.head.revision": run.git.commit or environment.git.commit,
        }
        if environment.program:
            arguments = mask_arguments([environment.program, *environment.args])
            attributes["process.command_args"] = arguments
    attributes["tensormeter.imported_from"] = "wandb"
    return {name: value for name, value in attributes.items() if value}


def _is_media(summary: Mapping[str, Any], name: str) -> bool:
    place: Any = summary
    for key in name.split("/"):
        if isinstance(place, Mapping) and "_type" in place:
            return True
        place = place.get(key) if isinstance(place, Mapping) else None
    return False


def _nanoseconds(timestamp: Any) -> int:
    """Return a time in nanoseconds since the Unix epoch; 0 if it is missing or out of range."""
    time = int(timestamp.seconds) * _SECONDS + int(timestamp.nanos)
    return time if 0 < time <= MOST_INTEGER else 0
