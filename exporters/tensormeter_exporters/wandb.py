"""Weights & Biases, offline unless told otherwise; `wandb sync` uploads what is there.

One W&B run for each process, grouped by the run. The step is the history's own column `tensormeter/step`, and the default
x-axis, because W&B's counter takes no steps that go back.
A request that comes again is left out if it was logged; one in which the agent was killed is logged again: its rows stand
there twice, at the same steps. (Nothing in W&B's file tells how far a killed process came.)
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import wandb
from PIL import Image as Picture

from tensormeter.errors import EncodingError, SettingsError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Rejected, Request, Retry
from tensormeter.otlp.batch import Distribution
from tensormeter.otlp.media import Alert, Image, Table, Text
from tensormeter_exporters.points import (
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

__all__ = ["WandbExporter"]

STEP: Final = "tensormeter/step"
_STATE: Final = "logged.json"
_MAX_BINS: Final = 512
_NANOSECONDS: Final = 1e9


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
        self._state = None if config.state is None else config.state / _STATE
        self._last = self._load()
        self._runs: dict[str, Any] = {}

    def export(self, request: Request) -> Outcome:
        if request.id == self._last:
            return Accepted()
        try:
            if request.signal == "metrics":
                self._metrics(read_metrics(request))
                outcome = Accepted()
            else:
                events = read_events(request)
                for spoken in events:
                    self._said(spoken)
                outcome = accepted(events)
        except (EncodingError, EOFError) as error:
            return Rejected(str(error))
        except wandb.Error as error:
            return Retry(f"wandb: {error}")
        self._save(request.id)
        return outcome

    def shutdown(self) -> None:
        """Runs that have not ended are left open: another agent goes on with them."""
        for run in self._runs.values():
            run.finish(exit_code=0)
        self._runs.clear()

    def _metrics(self, found: list[SteppedSeries]) -> None:
        rows: dict[tuple[Speaker, int], dict[str, Any]] = {}
        for stepped in found:
            columns = [(numbers.name, numbers.values, numbers.present) for numbers in scalars(stepped)]
            for index, at in enumerate(stepped.series.times.tolist()):
                row = rows.setdefault((stepped.speaker, at), {STEP: int(stepped.steps[index])})
                row |= {name: values[index].item() for name, values, present in columns if present[index]}
                if isinstance(stepped.series, Distribution):
                    row[stepped.name] = _histogram(stepped.series, index)
        for (speaker, at), row in sorted(rows.items(), key=lambda item: item[0][1]):
            self._run(speaker).log(row | {"_timestamp": at / _NANOSECONDS})

    def _said(self, spoken: Spoken) -> None:
        run = self._run(spoken.speaker)
        place = {STEP: spoken.axis_step, "_timestamp": spoken.event.time / _NANOSECONDS}
        match spoken.media:
            case Table(key, columns, rows):
                run.log({key: wandb.Table(columns=list(columns), data=[list(row) for row in rows])} | place)
            case Image(key, data, _, _, _, caption):
                run.log({key: wandb.Image(Picture.open(io.BytesIO(data)), caption=caption or None)} | place)
            case Text(key, text):
                run.log({key: wandb.Table(columns=["text"], data=[[text]])} | place)
            case Alert(title, text, level):
                run.alert(title=title, text=text, level=level)
            case None if spoken.event.name == RUN_START:
                config = spoken.body.get("config")
                if isinstance(config, Mapping):
                    run.config.update(dict(config), allow_val_change=True)
            case None if spoken.event.name == RUN_END:
                run.finish(exit_code=0 if spoken.body.get("state", "finished") == "finished" else 1)
                self._runs.pop(spoken.speaker.process, None)

    def _run(self, speaker: Speaker) -> Any:
        """The W&B run of a process. wandb must leave the training process's console, signals and machine alone."""
        if speaker.process not in self._runs:
            directory = Path(self._options["directory"]).expanduser().absolute()
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
        return self._runs[speaker.process]

    def _load(self) -> str:
        if self._state is None:
            return ""
        try:
            return str(json.loads(self._state.read_text(encoding="utf-8"))["id"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _save(self, request_id: str) -> None:
        self._last = request_id
        if self._state is not None:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._state.with_suffix(".new")
            temporary.write_text(json.dumps({"id": request_id}), encoding="utf-8")
            temporary.replace(self._state)


def _histogram(series: Distribution, index: int) -> wandb.Histogram:
    """At most as many bins as W&B takes: neighbours are merged, which keeps the counts exact."""
    edges, counts = bucket_edges(series, index)
    merge = -(-len(counts) // _MAX_BINS)
    starts = np.arange(0, len(counts), merge)
    merged = np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1])
    return wandb.Histogram(np_histogram=merged)
