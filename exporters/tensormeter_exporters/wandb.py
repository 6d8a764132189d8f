"""Weights & Biases, offline unless told otherwise; `wandb sync` uploads what is there.

One W&B run for each process, grouped by the run. The step is the history's own column `tensormeter/step`, and the default
x-axis, because W&B's counter takes no steps that go back.

A request that comes again, and one in which the agent was killed, is logged once: see `wandb_journal`. What a killed agent's
wandb is still writing is waited for. Only an alert may be told twice.
"""

import contextlib
import io
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import psutil
import wandb
from PIL import Image as Picture

from tensormeter.errors import EncodingError, SettingsError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Rejected, Request, Retry
from tensormeter.otlp.batch import Distribution
from tensormeter.otlp.media import Alert, Image, Table, Text
from tensormeter_exporters.points import (
    RUN_CONFIG,
    RUN_END,
    RUN_START,
    Speaker,
    Spoken,
    SteppedSeries,
    accepted,
    bucket_edges,
    read_events,
    read_metrics,
    scalars,
)
from tensormeter_exporters.wandb_file import WandbFile
from tensormeter_exporters.wandb_journal import Entry, Journal

__all__ = ["WandbExporter"]

STEP: Final = "tensormeter/step"
_LOOK: Final = 0.1
"""Seconds between two looks whether somebody still writes a file."""

_MAX_BINS: Final = 512
_MAX_TAG: Final = 64
_NANOSECONDS: Final = 1e9

_Row = tuple[Speaker, Callable[[], dict[str, Any]]]
"""Whose it is, and what makes it when it is logged."""


class WandbExporter:
    """See `tensormeter.exporter.Exporter` for the contract. `WANDB_API_KEY` and the like are read by wandb itself.

    Options:
        mode: `offline` or `online`.
        directory: Where wandb makes its folder `wandb`; by default where the agent was started.
        entity: User or team.
    """

    def __init__(self, config: ExporterConfig) -> None:
        options = config.options_or(mode="offline", directory=".", entity="")
        if options["mode"] not in ("offline", "online"):
            raise SettingsError(f"{config.destination}.mode: expected offline or online, got {options['mode']!r}")
        self._mode: Literal["offline", "online"] = "online" if options["mode"] == "online" else "offline"
        self._options = options
        self._timeout = config.timeout
        self._journal = Journal(config.state)
        self._runs: dict[str, Any] = {}
        self._files: dict[str, WandbFile] = {}
        self._logged: dict[str, int] = {}
        self._look_back()

    def export(self, request: Request) -> Outcome:
        if request.id == self._journal.accepted:
            return Accepted()
        try:
            said, rows, counts = _contents(request)
        except EncodingError as error:
            return Rejected(str(error))
        try:
            entry = self._journal.begin(request, counts)
            finished = self._log(entry, said, rows)
        except wandb.Error as error:
            return Retry(f"wandb: {error}")
        self._journal.accept(entry)
        self._forget(finished)
        return accepted(said)

    def shutdown(self) -> None:
        """Runs that have not ended are left open: another agent goes on with them."""
        for run in self._runs.values():
            run.finish(exit_code=0)
        self._forget(self._runs)
        self._runs.clear()

    def _directory(self) -> Path:
        return Path(self._options["directory"]).expanduser().absolute()

    def _look_back(self) -> None:
        """Log what an earlier agent has left and its wandb has not written."""
        deadline = time.monotonic() + self._timeout
        processes = {process for entry in self._journal.entries for process in entry.rows}
        for process in processes & self._journal.files.keys():
            path = self._journal.files[process]
            if not path.resolve().is_relative_to(self._directory().resolve()):
                continue  # a journal may come from elsewhere, and can name only files that wandb has written for us
            file = WandbFile(path)
            while writer := _writer_of(file.path):
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"waited {self._timeout:g} s for process {writer}, the wandb of an agent that is gone, which still "
                        f"writes {file.path}"
                    )
                threading.Event().wait(_LOOK)
            file.read()
            self._files[process] = file
        for entry in self._journal.entries:
            said, rows, _ = _contents(self._journal.request(entry))
            self._log(entry, said, rows)

    def _log(self, entry: Entry, said: list[Spoken], rows: list[_Row]) -> set[str]:
        """Log what has not been logged yet, each row at its step. Returns the processes that have ended."""
        steps = dict(entry.first)
        for speaker, content in rows:
            step = steps[speaker.process]
            steps[speaker.process] += 1
            if step > max(self._logged.get(speaker.process, -1), self._written(speaker.process)):
                self._run(speaker).log(content(), step=step, commit=True)
                self._logged[speaker.process] = step
        return {spoken.speaker.process for spoken in said if self._said(spoken)}

    def _said(self, spoken: Spoken) -> bool:
        """Whether that was the end of the process."""
        match spoken.media:
            case Alert(title, text, level):
                self._run(spoken.speaker).alert(title=title, text=text, level=level)
            case None if spoken.event.name in (RUN_START, RUN_CONFIG):
                run, config, tags = self._run(spoken.speaker), spoken.body.get("config"), spoken.body.get("tags")
                if isinstance(config, Mapping):
                    run.config.update(dict(config), allow_val_change=True)
                if isinstance(tags, Sequence):
                    run.tags = tuple(str(tag)[:_MAX_TAG] for tag in tags)
                if spoken.body.get("notes"):
                    run.notes = str(spoken.body["notes"])
            case None if spoken.event.name == RUN_END:
                state = spoken.body.get("state", "finished")
                self._run(spoken.speaker).finish(exit_code=0 if state == "finished" else 1)
                del self._runs[spoken.speaker.process]
                return True
        return False

    def _written(self, process: str) -> int:
        """W&B's last step of a process in its files, as far as they have been read."""
        file = self._files.get(process)
        return max(self._journal.written.get(process, -1), -1 if file is None else file.last_step)

    def _forget(self, finished: Iterable[str]) -> None:
        for file in self._files.values():
            file.read()
        self._journal.forget({process: self._written(process) for process in self._files}, finished)

    def _run(self, speaker: Speaker) -> Any:
        """The W&B run of a process. wandb must leave the training process's console, signals and machine alone."""
        if speaker.process not in self._runs:
            directory = self._directory()
            directory.mkdir(parents=True, exist_ok=True)
            self._runs[speaker.process] = run = wandb.init(
                project=speaker.project,
                entity=self._options["entity"] or None,
                id=f"{speaker.run}-{speaker.process[:8]}",
                name=speaker.name,
                group=speaker.run,
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
            self._journal.open(speaker.process, path, self._written(speaker.process))
            self._files[speaker.process] = WandbFile(path)
        return self._runs[speaker.process]


def _contents(request: Request) -> tuple[list[Spoken], list[_Row], dict[str, int]]:
    """The events of a request, its rows, and how many rows each process has that it speaks of.

    Raises:
        EncodingError: The body is not what it claims to be.
    """
    said = read_events(request) if request.signal == "logs" else []
    rows = [*_media(said)] if request.signal == "logs" else _rows(read_metrics(request))
    counts = Counter(speaker.process for speaker, _ in rows)
    return said, rows, dict.fromkeys((spoken.speaker.process for spoken in said), 0) | dict(counts)


def _rows(found: list[SteppedSeries]) -> list[_Row]:
    """The rows of a metrics request, in order of time."""
    rows: dict[tuple[Speaker, int], dict[str, Any]] = {}
    for stepped in found:
        columns = [(numbers.name, numbers.values, numbers.present) for numbers in scalars(stepped)]
        for index, at in enumerate(stepped.series.times.tolist()):
            row = rows.setdefault((stepped.speaker, at), {STEP: int(stepped.steps[index])})
            row |= {name: values[index].item() for name, values, present in columns if present[index]}
            if isinstance(stepped.series, Distribution):
                row[stepped.name] = _histogram(stepped.series, index)
            row["_timestamp"] = at / _NANOSECONDS
    in_order = sorted(rows.items(), key=lambda item: (item[0][1], item[0][0].process))
    return [(speaker, partial(dict, row)) for (speaker, _), row in in_order]


def _media(events: list[Spoken]) -> Iterator[_Row]:
    """The rows of a logs request: what has a key."""
    for spoken in events:
        if isinstance(spoken.media, Table | Image | Text):
            yield spoken.speaker, partial(_media_row, spoken)


def _media_row(spoken: Spoken) -> dict[str, Any]:
    place = {STEP: spoken.axis_step, "_timestamp": spoken.event.time / _NANOSECONDS}
    match spoken.media:
        case Table(key, columns, rows):
            cells = [[_picture(cell) if isinstance(cell, Image) else cell for cell in row] for row in rows]
            return {key: wandb.Table(columns=list(columns), data=cells)} | place
        case Image(key) as image:
            return {key: _picture(image)} | place
        case Text(key, text):
            return {key: wandb.Table(columns=["text"], data=[[text]])} | place
    raise TypeError(f"no media: {spoken!r}")


def _writer_of(path: Path) -> int | None:
    """The id of a process that has this file open, if one can be seen."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(file.path == os.fspath(path) for file in process.open_files()):
                return process.pid
    return None


def _histogram(series: Distribution, index: int) -> wandb.Histogram:
    """At most as many bins as W&B takes: neighbours are merged, which keeps the counts exact."""
    edges, counts = bucket_edges(series, index)
    merge = -(-len(counts) // _MAX_BINS)
    starts = np.arange(0, len(counts), merge)
    merged = np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1])
    return wandb.Histogram(np_histogram=merged)


def _picture(image: Image) -> wandb.Image:
    return wandb.Image(Picture.open(io.BytesIO(image.data)), caption=image.caption or None)
