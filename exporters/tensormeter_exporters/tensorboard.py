"""The `tensorboard` destination: event files with scalars, histograms, images, audio and texts.

Each process has its own folder, DIRECTORY/PROJECT/RUN/PROCESS, which TensorBoard shows as a run. The files are written
with TensorBoard's own record writer and messages, without TensorFlow or torch. TensorBoard stores scalars in single
precision. A retried request is written only once; see `append_once`. Any string is a valid tag, except `config`,
`state` and `alerts`, which are reserved for tensormeter's own texts.
"""

import io
import json
import re
import wave
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from tensormeter.conventions.semconv import ARTIFACT_EVENT, RUN_CODE, RUN_CONFIG, RUN_END, RUN_START, STEP_METRIC
from tensormeter.exporter import ExporterConfig, Outcome, Request
from tensormeter.otlp.batch import Distribution
from tensormeter.otlp.media import Alert, Audio, Figure, Html, Image, Images, Media, Table, Text, Video
from tensormeter_exporters.append_once import AppendOnce
from tensormeter_exporters.base import FileExporter
from tensormeter_exporters.names import ChangedNames
from tensormeter_exporters.otlp_series import (
    ProcessRef,
    RunEvent,
    SteppedSeries,
    bucket_edges,
    flatten,
    read_events,
    read_metrics,
    scalars,
)
from tensormeter_exporters.provenance import artifact_rows, code_rows
from tensormeter_exporters.refused_items import RefusedItems
from tensormeter_exporters.series_names import SeriesNames
from tensormeter_exporters.unsupported_media import UnsupportedMedia

__all__ = ["TensorBoardExporter"]

_OWN_TAGS: Final = frozenset({"alerts", "artifacts", "code", "config", "state"})
_LONGEST_TAG: Final = 4096
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_RGB: Final = 3
_FILE_VERSION: Final = "brain.Event:2"
_SMALLEST: Final = float(np.finfo(np.float32).tiny)
_LARGEST: Final = float(np.finfo(np.float32).max)
_MAX_ROWS: Final = 1000
"""Maximum number of rows in a table. TensorBoard renders tables as text in the browser."""


class TensorBoardExporter(FileExporter):
    """The exporter of the `tensorboard` destination. It implements `tensormeter.exporter.Exporter`.

    Options:
        directory: Folder for `tensorboard --logdir`. Default: `runs`, as in torch's `SummaryWriter`.
    """

    media: ClassVar = {
        "text": "text",
        "table": "text (Markdown)",
        "image": "image",
        "images": "images `KEY/0` ...",
        "video": "image, if it is a GIF",
        "audio": "audio, if it is a WAV",
    }

    def __init__(self, config: ExporterConfig) -> None:
        super().__init__(Path(config.options_or(directory="runs")["directory"]).expanduser().absolute())
        self._files = AppendOnce(config.state, self.directory)
        name = config.destination or "tensorboard"
        self._series = SeriesNames(name, config.state)
        self._unsupported = UnsupportedMedia(name)
        self._tags = ChangedNames(name, "tensormeter uses that tag for its own text", _clean_tag, _LONGEST_TAG)

    def deliver(self, request: Request) -> Outcome:
        events: defaultdict[ProcessRef, list[Event]] = defaultdict(list)
        refused = RefusedItems()
        if request.signal == "metrics":
            series = read_metrics(request)
            self._series.begin(series)
            for stepped in series:
                with refused.item(stepped.name[:100]):
                    events[stepped.sender].extend(self._series_events(stepped))
        else:
            for run_event in refused.readable(read_events(request)):
                with refused.item(run_event.event.name):
                    events[run_event.sender].extend(self._run_events(run_event))
                    self._refuse(refused, run_event.media)
        self._series.save()
        files = {self._path(request, sender): of_process for sender, of_process in events.items()}
        self._files.append(request.id, {path: self._records(request, path, some) for path, some in files.items()})
        return refused.outcome(sum(map(len, events.values())))

    def _series_events(self, stepped: SteppedSeries) -> list[Event]:
        events = []
        series = stepped.series
        times = (series.times / 1e9).tolist()
        steps = stepped.steps.tolist()
        for numbers in scalars(stepped):
            tag = self._series.of(stepped, numbers.part)
            with np.errstate(all="ignore"):  # values outside single precision become infinite
                values, present = numbers.values.astype(np.float32).tolist(), numbers.present.tolist()
            for at, step, value, there in zip(times, steps, values, present, strict=True):
                if there:
                    events.append(_event(at, step, Summary.Value(tag=tag, simple_value=value)))
        if isinstance(series, Distribution):
            for index, (at, step) in enumerate(zip(times, steps, strict=True)):
                edges, counts = bucket_edges(series, index)
                # In single precision, a bucket for 0 alone would have no width, and large edges would be infinite.
                edges = np.clip(edges, -_LARGEST, _LARGEST)
                edges = np.where((edges < 0) & (edges > -_SMALLEST), -_SMALLEST, edges)
                histogram = HistogramProto(
                    min=edges[0],
                    max=edges[-1],
                    num=float(counts.sum()),
                    sum=float(np.nan_to_num(series.sums[index])),
                    bucket_limit=[edges[0], *edges[1:]],
                    bucket=[0.0, *counts],
                )
                events.append(_event(at, step, Summary.Value(tag=self._series.of(stepped), histo=histogram)))
        return events

    def _run_events(self, run_event: RunEvent) -> Iterator[Event]:
        at, step = run_event.event.time / 1e9, run_event.axis_step
        match run_event.media:
            case Image(key) as image:
                yield _event(at, step, _image(key, image))
            case Images(key, images):
                for number, image in enumerate(images):
                    yield _event(at, step, _image(f"{key}/{number}", image))
            case Video(key, data, "image/gif", width, height):
                yield _event(at, step, _image(key, Image("", data, "image/gif", width, height)))
            case Audio(key, data, "audio/wav"):
                yield _event(at, step, Summary.Value(tag=key, audio=_audio(data)))
            case Text(key, text):
                yield _event(at, step, _text(self._tags(key), text))
            case Table(key, columns, rows):
                yield _event(at, step, _text(self._tags(key), _markdown(columns, rows)))
            case Alert(title, text, level):
                yield _event(at, step, _text("alerts", f"**{level}: {title}**\n\n{text}"))
            case None if run_event.event.name in (RUN_START, RUN_CONFIG):
                config = run_event.body.get("config")
                if isinstance(config, dict) and config:
                    shown = [
                        [key, json.dumps(value, ensure_ascii=False, default=str)]
                        for key, value in flatten(config).items()
                    ]
                    yield _event(at, 0, _text("config", _markdown(["name", "value"], shown)))
            case None if run_event.event.name == RUN_CODE:
                yield _event(at, 0, _text("code", _markdown(["name", "value"], code_rows(run_event.body))))
            case None if run_event.event.name == ARTIFACT_EVENT:
                given = run_event.event.attributes.get(STEP_METRIC)
                rows = _markdown(["name", "value"], artifact_rows(run_event.body))
                yield _event(at, given if isinstance(given, int) else step, _text("artifacts", rows))
            case None if run_event.event.name == RUN_END:
                yield _event(at, step, _text("state", str(run_event.body.get("state", "finished"))))

    def _refuse(self, refused: RefusedItems, media: Media | None) -> None:
        """Count media that TensorBoard cannot show."""
        match media:
            case Html(key):
                self._unsupported.refuse(refused, "HTML documents", key)
            case Figure(key):
                self._unsupported.refuse(refused, "Plotly figures", key)
            case Video(key, _, media_type) if media_type != "image/gif":
                self._unsupported.refuse(refused, "videos that are not GIFs", key)
            case Audio(key, _, media_type) if media_type != "audio/wav":
                self._unsupported.refuse(refused, "audio clips that are not WAV files", key)

    def _path(self, request: Request, sender: ProcessRef) -> Path:
        parts = [_UNSAFE.sub("_", part)[:128] or "_" for part in (sender.project, sender.run, sender.process[:8])]
        return self.directory.joinpath(*(f"_{part}" if part.startswith(".") else part for part in parts)) / (
            f"events.out.tfevents.{self._files.writer}"
        )

    def _records(self, request: Request, path: Path, events: Iterable[Event]) -> bytes:
        out = io.BytesIO()
        writer = RecordWriter(out)
        events = list(events)
        if events and not self._files.size(request.id, path):
            first = Event(wall_time=min(event.wall_time for event in events), file_version=_FILE_VERSION)
            writer.write(first.SerializeToString())
        for event in events:
            writer.write(event.SerializeToString())
        return out.getvalue()


def _clean_tag(key: str) -> str:
    return f"{key}_" if key in _OWN_TAGS else key


def _event(at: float, step: int, value: Summary.Value) -> Event:
    return Event(wall_time=at, step=step, summary=Summary(value=[value]))


def _image(tag: str, image: Image) -> Summary.Value:
    encoded = Summary.Image(encoded_image_string=image.data, width=image.width, height=image.height, colorspace=_RGB)
    return Summary.Value(tag=tag, image=encoded)


def _audio(data: bytes) -> Summary.Audio:
    with wave.open(io.BytesIO(data)) as clip:
        return Summary.Audio(
            sample_rate=clip.getframerate(),
            num_channels=clip.getnchannels(),
            length_frames=clip.getnframes(),
            encoded_audio_string=data,
            content_type="audio/wav",
        )


def _text(tag: str, text: str) -> Summary.Value:
    tensor = TensorProto(
        dtype=DT_STRING,
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        string_val=[text.encode(errors="replace")],
    )
    return Summary.Value(tag=tag, metadata=create_summary_metadata(tag, ""), tensor=tensor)


def _markdown(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    columns, rows = list(columns), list(rows)
    shown = [line(columns), line("---" for _ in columns), *(line(row) for row in rows[:_MAX_ROWS])]
    return "\n".join([*shown, *([f"\n{len(rows) - _MAX_ROWS} more rows"] if len(rows) > _MAX_ROWS else [])])
