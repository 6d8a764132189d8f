"""The `wandb` destination: Weights & Biases, offline by default. `wandb sync` uploads offline runs.

Each process has a separate W&B run; the processes of a run form a W&B group. W&B's own step counter cannot decrease, so
steps are stored in the history column `tensormeter/step`, which is the default x-axis.

Each request is logged once, even if it is retried or the agent is killed while logging it; see `journal`. The next
agent waits while the killed agent's wandb process is still writing files. Only alerts may be repeated.

Items that wandb cannot write, such as invalid images or reserved keys, are individually refused or renamed. The rest of
the row, table or configuration is written.
"""

import atexit
import contextlib
import importlib.util
import io
import os
import re
import tempfile
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import psutil
import wandb
from PIL import Image as Picture

from tensormeter.conventions.semconv import RUN_CONFIG, RUN_END, RUN_START
from tensormeter.errors import EncodingError, SettingsError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Rejected, Request, Retry
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Distribution
from tensormeter.otlp.media import Alert, Audio, Figure, Html, Image, Images, Table, Text, Video
from tensormeter.outages import is_outage
from tensormeter_exporters.base import DecodingExporter
from tensormeter_exporters.names import ChangedNames, suffix_of
from tensormeter_exporters.otlp_series import (
    ProcessRef,
    RunEvent,
    SteppedSeries,
    bucket_edges,
    read_events,
    read_metrics,
    scalars,
)
from tensormeter_exporters.refused_items import RefusedItems
from tensormeter_exporters.series_names import SeriesNames
from tensormeter_exporters.unsupported_media import UnsupportedMedia
from tensormeter_exporters.wandb.journal import Entry, Journal
from tensormeter_exporters.wandb.records import WandbFile

__all__ = ["WandbExporter"]

logger: Final = get_logger("tensormeter.agent")

STEP: Final = "tensormeter/step"
_LOOK: Final = 0.1
"""Interval, in seconds, between checks of whether a process is still writing a file."""

_MAX_BINS: Final = 512
_MAX_TAG: Final = 64
_MAX_TITLE: Final = 63
_SHORTEST_WAIT: Final = timedelta(milliseconds=1)
"""`wait_duration` of alerts, within which W&B silently drops further alerts with the same title."""

_MAX_ROWS: Final = 200_000
_MAX_NAME: Final = 128
_MAX_ID: Final = 64
_MAX_ARTIFACT: Final = 128
_CHECKSUM: Final = 7
"""Number of characters that W&B appends to an artifact's name if it replaces characters in the name."""

_NANOSECONDS: Final = 1e9
_RESERVED: Final = frozenset({STEP, "_step", "_timestamp", "_runtime", "_wandb"})
"""Reserved history columns, which W&B or this exporter writes."""

_PICTURE_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
"""Pillow image modes that PNG supports."""

_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_NOT_IN_PROJECTS: Final = re.compile(r"[\x00-\x1f\x7f/\\#?%:]")
_MAX_PROJECT: Final = 128

_DRIVE: Final = re.compile(r"^([^/]):")
"""Drive of a Windows path. W&B refuses paths with a drive. Since Python 3.12, any character counts as a drive letter."""

_Media = Table | Image | Images | Video | Audio | Figure | Html | Text

_EXTENSIONS: Final = {"audio/mpeg": "mp3"}

_Row = tuple[ProcessRef, str, Callable[[], dict[str, Any]]]
"""Sender of a row, the row's name for messages, and a function that creates the row when it is logged."""


class _Unavailable(Exception):  # noqa: N818 - a temporary state
    """wandb cannot start a run, or wandb's own process has ended."""


class WandbExporter(DecodingExporter):
    """The exporter of the `wandb` destination. It implements `tensormeter.exporter.Exporter`.

    W&B's environment variables, such as `WANDB_API_KEY`, apply too.

    Options:
        mode: `offline` or `online`.
        directory: Folder in which wandb creates its folder `wandb`. Default: the agent's working directory.
        entity: W&B user or team.
    """

    media: ClassVar = {
        "text": "table with one cell",
        "table": "table",
        "image": "image",
        "images": "list of images",
        "video": "video",
        "audio": "audio",
        "figure": "chart, if Plotly is installed",
        "html": "HTML",
    }

    def __init__(self, config: ExporterConfig) -> None:
        options = config.options_or(mode="offline", directory=".", entity="")
        if options["mode"] not in ("offline", "online"):
            raise SettingsError(f"{config.destination}.mode: expected offline or online, got {options['mode']!r}")
        self._mode: Literal["offline", "online"] = "online" if options["mode"] == "online" else "offline"
        self._options = options
        self._timeout = config.timeout
        self._destination = config.destination or "wandb"
        self._journal = _open_journal(config.state)
        self._keys = ChangedNames(self._destination, "W&B reserves that column", _clean_key, 4096)
        self._series = SeriesNames(self._destination, config.state, self._keys)
        self._config_keys = ChangedNames(self._destination, "W&B changes such configuration keys", _clean_config, 4096)
        self._tags = ChangedNames(
            self._destination, f"W&B tags must have 1 to {_MAX_TAG} characters", _clean_tag, _MAX_TAG
        )
        self._projects = ChangedNames(
            self._destination, "W&B projects have up to 128 characters other than /\\#?%:", _clean_project, _MAX_PROJECT
        )
        self._unsupported = UnsupportedMedia(self._destination)
        self._media_keys: dict[int, ChangedNames] = {}
        self._runs: dict[str, Any] = {}
        self._files: dict[str, WandbFile] = {}
        self._logged: dict[str, int] = {}
        self._lost = False
        """Whether wandb's own process died before it wrote all rows."""
        self._refused: dict[str, RefusedItems] = {}
        """Refused items, by request ID, of requests that an earlier agent began to log."""
        self._look_back()

    def deliver(self, request: Request) -> Outcome:
        if request.id == self._journal.accepted:
            return Accepted(*self._journal.refused)
        try:
            if self._lost:
                self._start_again()
            refused = self._refused.pop(request.id, None) or RefusedItems(_is_temporary)
            run_events, rows, counts = self._contents(request, refused)
        except _Unavailable as error:
            return Retry(f"wandb: {error}")
        try:
            self._series.save()
            self._go_on({run_event.sender for run_event in run_events} | {sender for sender, _, _ in rows})
            entry = self._journal.begin(request, counts)
            stored, finished = self._log(entry, run_events, rows, refused)
        except (wandb.Error, _Unavailable) as error:
            return Retry(f"wandb: {error}")
        except Exception as error:
            if not _is_of_service(error):
                raise
            self._lost = True
            return Retry(f"the wandb process died ({type(error).__name__}: {error}); restarting it")
        outcome = refused.outcome(stored)
        if isinstance(outcome, Rejected):
            self._journal.drop(entry)
        else:
            self._journal.accept(entry, refused.count, refused.reason)
        self._forget(finished)
        return outcome

    def shutdown(self) -> None:
        """Close the files. Unfinished runs remain resumable, so another agent can continue them."""
        finished = set()
        for process, run in self._runs.items():
            try:
                run.finish(exit_code=0)
                finished.add(process)
            except Exception as error:  # wandb's process has died; the journal has the unwritten rows
                logger.warning("%s: wandb did not finish: %s: %s", self._destination, type(error).__name__, error)
        self._forget(finished)
        self._runs.clear()

    def _start_again(self) -> None:
        """Start a new wandb process, as another agent would, and log unwritten rows again."""
        _tear_down()
        self._runs.clear()
        self._logged.clear()
        self._look_back()
        self._lost = False

    def _directory(self) -> Path:
        return Path(self._options["directory"]).expanduser().absolute()

    def _look_back(self) -> None:
        """Log the rows that an earlier agent's wandb process did not write."""
        deadline = time.monotonic() + self._timeout
        processes = {process for entry in self._journal.entries for process in entry.rows}
        for process in processes & self._journal.files.keys():
            path = self._journal.files[process]
            if not path.resolve().is_relative_to(self._directory().resolve()):
                continue  # a journal may come from another machine, so files outside our folder are ignored
            file = WandbFile(path)
            while writer := _writer_of(file.path):
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"waited {self._timeout:g} s for process {writer} (wandb of an earlier agent), which is "
                        f"still writing {file.path}; kill it if it hangs"
                    )
                threading.Event().wait(_LOOK)
            file.read()
            self._files[process] = file
        for entry in list(self._journal.entries):
            refused = RefusedItems(_is_temporary)
            try:
                run_events, rows, _ = self._contents(self._journal.request(entry), refused)
            except (EncodingError, FileNotFoundError) as error:
                logger.warning("%s: cannot read %r in the journal: %s", self._destination, entry.id, error)
                self._journal.drop(entry)
                continue
            self._log(entry, run_events, rows, refused)
            self._refused[entry.id] = refused

    def _go_on(self, senders: set[ProcessRef]) -> None:
        """Read the next W&B step of each process that is not in the journal from the process's files.

        W&B steps cannot decrease, so the next row must come after the last step in these files.
        """
        for sender in senders:
            if not self._journal.knows(sender.process):
                files = [WandbFile(path) for path in self._directory().glob(f"wandb/*/run-{_run_id(sender)}.wandb")]
                for file in files:
                    file.read()
                self._journal.go_on(sender.process, max((file.last_step for file in files), default=-1))

    def _contents(self, request: Request, refused: RefusedItems) -> tuple[list[RunEvent], list[_Row], dict[str, int]]:
        """Return the events and rows of a request, and the number of rows per process.

        Raises:
            EncodingError: The body cannot be decoded.
        """
        if request.signal == "logs":
            run_events = read_events(request)
            rows = [*self._media(run_events, refused)]
        else:
            run_events = []
            rows = self._rows(read_metrics(request), refused)
        counts = Counter(sender.process for sender, _, _ in rows)
        return run_events, rows, dict.fromkeys((run_event.sender.process for run_event in run_events), 0) | dict(counts)

    def _rows(self, series: list[SteppedSeries], refused: RefusedItems) -> list[_Row]:
        """Return the rows of a metrics request, ordered by time."""
        rows: dict[tuple[ProcessRef, int], dict[str, Any]] = {}
        self._series.begin(series)
        for stepped in series:
            name = self._series.of(stepped)
            columns = [
                (self._series.of(stepped, numbers.part), numbers.values, numbers.present)
                for numbers in scalars(stepped)
            ]
            for index, at in enumerate(stepped.series.times.tolist()):
                row = rows.setdefault((stepped.sender, at), {STEP: int(stepped.steps[index])})
                row |= {name: values[index].item() for name, values, present in columns if present[index]}
                if isinstance(stepped.series, Distribution):
                    with refused.item(f"distribution {name}"):
                        row[name] = _histogram(stepped.series, index)
                row["_timestamp"] = at / _NANOSECONDS
        in_order = sorted(rows.items(), key=lambda item: (item[0][1], item[0][0].process))
        return [(sender, "a row", partial(dict, row)) for (sender, _), row in in_order]

    def _media(self, events: list[RunEvent], refused: RefusedItems) -> Iterator[_Row]:
        """Yield the rows of a logs request, one for each media item."""
        for run_event in events:
            if isinstance(run_event.media, Figure) and not _has_plotly():
                self._unsupported.refuse(
                    refused, "Plotly figures, because Plotly is not installed", run_event.media.key
                )
            elif isinstance(run_event.media, _Media):
                names = self._media_names(run_event.sender)
                what = f"{run_event.media.EVENT.rpartition('.')[2]} {run_event.media.key[:100]!r}"
                yield run_event.sender, what, partial(_media_row, run_event, run_event.media, names, refused, what)

    def _media_names(self, sender: ProcessRef) -> ChangedNames:
        """Return the converter for media names. Their length is limited, because W&B adds the run's ID to each name."""
        room = _MAX_ARTIFACT - _CHECKSUM - len(f"run-{_run_id(sender)}-")
        if room not in self._media_keys:
            rule = f"W&B uses keys as file paths, which can have at most {room} bytes"
            self._media_keys[room] = ChangedNames(self._destination, rule, _clean_media, room, in_bytes=True)
        return self._media_keys[room]

    def _log(
        self, entry: Entry, run_events: list[RunEvent], rows: list[_Row], refused: RefusedItems
    ) -> tuple[int, set[str]]:
        """Log the rows that have not been logged yet, each at its step.

        Returns:
            Number of logged rows and events, and the processes that have ended.
        """
        steps = dict(entry.first)
        stored = 0
        for sender, what, content in rows:
            step = steps[sender.process]
            steps[sender.process] += 1
            if step > max(self._logged.get(sender.process, -1), self._written(sender.process)):
                run = self._run(sender)
                with refused.item(what):
                    run.log(content(), step=step, commit=True)  # copies the files of media
                    stored += 1
                self._logged[sender.process] = step
            else:
                stored += 1
        finished = set()
        for run_event in refused.readable(run_events):
            run = self._run(run_event.sender)
            with refused.item(run_event.event.name):
                stored += not isinstance(run_event.media, _Media)
                if self._log_event(run, run_event, refused):
                    finished.add(run_event.sender.process)
        return stored, finished

    def _log_event(self, run: Any, run_event: RunEvent, refused: RefusedItems) -> bool:
        """Log an event. Return whether it marks the end of the process."""
        match run_event.media:
            case Alert(title, text, level):
                if len(title) > _MAX_TITLE:
                    title, text = f"{title[: _MAX_TITLE - 3]}...", f"{title}\n\n{text}"
                run.alert(title=title, text=text, level=level, wait_duration=_SHORTEST_WAIT)
            case None if run_event.event.name in (RUN_START, RUN_CONFIG):
                config, tags = run_event.body.get("config"), run_event.body.get("tags")
                if isinstance(config, Mapping):
                    for key, value in config.items():
                        with refused.item(f"configuration {key[:100]!r}"):
                            run.config.update({self._config_keys(key): value}, allow_val_change=True)
                if run_event.body.get("job_type"):  # `Run.job_type` cannot be set; the next assignment sends it
                    run._settings.run_job_type = str(run_event.body["job_type"])
                    run.tags = run.tags
                if isinstance(tags, Sequence):
                    run.tags = tuple(dict.fromkeys(self._tags(str(tag)) for tag in tags))
                if run_event.body.get("notes"):
                    run.notes = str(run_event.body["notes"])
            case None if run_event.event.name == RUN_END:
                state = run_event.body.get("state", "finished")
                run.finish(exit_code=0 if state == "finished" else 1)
                del self._runs[run_event.sender.process]
                return True
        return False

    def _written(self, process: str) -> int:
        """Return the last W&B step that has been read from the files of a process; -1 if there is none."""
        file = self._files.get(process)
        return max(self._journal.written.get(process, -1), -1 if file is None else file.last_step)

    def _forget(self, finished: Iterable[str]) -> None:
        for file in self._files.values():
            file.read()
        self._journal.forget({process: self._written(process) for process in self._files}, finished)

    def _run(self, sender: ProcessRef) -> Any:
        """Return the W&B run of a process."""
        if sender.process not in self._runs:
            try:
                self._begin(sender)
            except Exception as error:  # any exception, because the request cannot be the cause
                if _is_of_service(error):
                    _tear_down()
                raise _Unavailable(f"cannot start a run ({type(error).__name__}: {error})") from error
        return self._runs[sender.process]

    def _begin(self, sender: ProcessRef) -> None:
        """Start or resume a W&B run. wandb must not affect the training process or record the agent's machine."""
        directory = self._directory()
        directory.mkdir(parents=True, exist_ok=True)
        self._runs[sender.process] = run = wandb.init(
            project=self._projects(sender.project),
            entity=self._options["entity"] or None,
            id=_run_id(sender),
            name=_plain(sender.name),
            group=sender.run,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                mode=self._mode,
                root_dir=os.fspath(directory),
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                disable_job_creation=True,
                init_timeout=self._timeout,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
            ),
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        path = Path(run.dir).parent / f"run-{run.id}.wandb"
        self._journal.open(sender.process, path, self._written(sender.process))
        self._files[sender.process] = WandbFile(path)


def _open_journal(folder: Path | None) -> Journal:
    """Open the journal. A damaged journal is renamed, so that it does not block delivery forever."""
    try:
        return Journal(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        aside = Journal.set_aside(folder)
        logger.warning(
            "cannot read the W&B journal (%s: %s); renamed it to %s. The last rows may be missing or duplicated",
            *(type(error).__name__, error, aside),
        )
        return Journal(folder)


def _is_temporary(error: Exception) -> bool:
    """Return whether the logged item is not the cause of an exception."""
    return is_outage(error) or isinstance(error, _Unavailable | wandb.errors.CommError) or _is_of_service(error)


def _is_of_service(error: Exception) -> bool:
    """Return whether an exception means that the connection to wandb's own process is broken."""
    module = type(error).__module__
    return isinstance(error, ConnectionError) or module.startswith(("wandb.sdk.lib.service", "wandb.sdk.mailbox"))


def _tear_down() -> None:
    """Abandon wandb's own process, so that the next run starts a new one."""
    with contextlib.suppress(Exception, SystemExit):  # a broken process may raise again
        wandb.teardown()


def _run_id(sender: ProcessRef) -> str:
    run = sender.run
    longest = _MAX_ID - len("-") - 8
    if len(run) > longest:
        suffix = suffix_of(run)
        run = f"{run[: longest - len(suffix)]}{suffix}"
    return f"{run}-{sender.process[:8]}"


def _plain(name: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in name[:_MAX_NAME])


def _clean_key(key: str) -> str:
    return key.lstrip("_").replace("/", "_") if key in _RESERVED else key


def _clean_config(key: str) -> str:
    return (key.lstrip("_") if key in _RESERVED else key).strip("-") or "_"


def _clean_tag(tag: str) -> str:
    return tag or "_"


def _clean_project(project: str) -> str:
    return _NOT_IN_PROJECTS.sub("-", project) or "_"


def _clean_media(key: str) -> str:
    """Return a path without empty parts, ".", "..", control characters or backslashes."""
    key = _DRIVE.sub(r"\1_", _UNSAFE.sub("_", _clean_key(key)))
    parts = [part for part in key.split("/") if part.strip(". ")]
    return "/".join(parts) or "_"


def _media_row(
    run_event: RunEvent, media: _Media, names: ChangedNames, refused: RefusedItems, what: str
) -> dict[str, Any]:
    place = {STEP: run_event.axis_step, "_timestamp": run_event.event.time / _NANOSECONDS}
    match media:
        case Table(key, columns, rows):
            return {names(key): _table(columns, rows, refused, what)} | place
        case Image(key) as image:
            return {names(key): _picture(image)} | place
        case Images(key, images):
            return {names(key): [_picture(image) for image in images]} | place
        case Video(key, data, media_type, caption=caption):
            kind: Any = media_type.rpartition("/")[2]
            return {names(key): wandb.Video(io.BytesIO(data), caption or None, format=kind)} | place
        case Audio(key) as clip:
            return {names(key): _sound(clip)} | place
        case Html(key, text):
            return {names(key): wandb.Html(text, inject=False, data_is_not_path=True)} | place
        case Figure(key, text):
            return {names(key): _plot(text)} | place
        case Text(key, text):
            return {names(key): wandb.Table(columns=["text"], data=[[text]])} | place


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], refused: RefusedItems, what: str) -> wandb.Table:
    """Create a table. A column with values of several types gets a mixed type."""
    if len(rows) > _MAX_ROWS:
        refused.add(f"{what} has {len(rows)} rows, but W&B's limit is {_MAX_ROWS}; the remaining rows were left out")
    cells = [
        [_cell(cell, refused, f"{what}, image in row {number}") for cell in row]
        for number, row in enumerate(rows[:_MAX_ROWS])
    ]
    names = _distinct(columns)
    try:
        return wandb.Table(columns=names, data=cells)
    except TypeError:
        return wandb.Table(columns=names, data=cells, allow_mixed_types=True)


def _cell(cell: Any, refused: RefusedItems, what: str) -> Any:
    if not isinstance(cell, Image):
        return cell
    pictures: list[wandb.Image] = []
    with refused.item(what):
        pictures.append(_picture(cell))
    return pictures[0] if pictures else str(cell)


def _distinct(columns: Sequence[str]) -> list[str | int]:
    """Return the column names, with a number added to duplicates."""
    seen: Counter[str] = Counter()
    names: list[str | int] = []
    for column in map(str, columns):
        seen[column] += 1
        name = column
        while name in names:
            seen[column] += name != column
            name = f"{column} ({seen[column]})"
        names.append(name)
    return names


def _writer_of(path: Path) -> int | None:
    """Return the PID of a process that has this file open, or None if no such process is visible."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(file.path == os.fspath(path) for file in process.open_files()):
                return process.pid
    return None


def _histogram(series: Distribution, index: int) -> wandb.Histogram:
    """Create a histogram within W&B's bin limit. Merging adjacent bins keeps the counts exact."""
    edges, counts = bucket_edges(series, index)
    merge = -(-len(counts) // _MAX_BINS)
    starts = np.arange(0, len(counts), merge)
    merged = np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1])
    return wandb.Histogram(np_histogram=merged)


def _picture(image: Image) -> wandb.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about large or unusual images
        with Picture.open(io.BytesIO(image.data)) as picture:
            picture.load()
            shown = picture if picture.mode in _PICTURE_MODES else picture.convert("RGB")
            return wandb.Image(shown, caption=image.caption or None)


def _sound(clip: Audio) -> wandb.Audio:
    """Create an audio item. wandb needs a file, which it copies when the item is logged."""
    extension = _EXTENSIONS.get(clip.content_type, clip.content_type.rpartition("/")[2])
    file = Path(_scratch(), f"{uuid.uuid4().hex}.{extension}")
    file.write_bytes(clip.data)
    sound = wandb.Audio(file, caption=clip.caption or None)
    sound._is_tmp = True  # so that wandb moves the file
    return sound


@cache
def _scratch() -> str:
    """Return a folder for files that wandb moves. It is deleted when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="tensormeter-")
    atexit.register(folder.cleanup)
    return folder.name


def _has_plotly() -> bool:
    return importlib.util.find_spec("plotly") is not None


def _plot(figure: str) -> wandb.Plotly:
    import plotly.io

    return wandb.Plotly(plotly.io.from_json(figure, skip_invalid=True))
