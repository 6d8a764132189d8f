"""Builders of OTLP: resources, series and events as training processes send them."""

import gzip
import io
import json
import wave
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image

from tensormeter.exporter import Request
from tensormeter.otlp.batch import (
    STEP_METRIC,
    Batch,
    Buckets,
    Event,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Series,
    Sum,
    Temporality,
)
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.media import Audio, Figure, Html, Image, Images, Table, Text, Video

__all__ = ["Batches", "Parts", "Requests"]

T0 = 1_790_000_000_000_000_000


class Parts:
    """The parts of every request."""

    PROCESS = "p0"
    """Id of the process that sends, unless another is given."""

    @classmethod
    def resource(
        cls, run: str = "run1", process: str | None = None, project: str = "demo", **more: Any
    ) -> dict[str, Any]:
        return {
            "service.name": project,
            "service.instance.id": cls.PROCESS if process is None else process,
            "tensormeter.run.id": run,
            "tensormeter.run.name": f"name of {run}",
        } | more

    @staticmethod
    def gauge(name: str, times: Sequence[int], values: Sequence[float], **attributes: str) -> Gauge:
        integers = all(isinstance(value, int) for value in values)
        column = np.array(values, np.int64 if integers else np.float64)
        return Gauge(name, np.array(times, np.uint64), column, attributes=attributes)


class Batches(Parts):
    """Batches of points, for servers."""

    @classmethod
    def rows(cls, run: str, rows: Sequence[tuple[int, int, Mapping[str, float]]], **resource: str) -> Batch:
        """A batch from rows of (time, step, values), as a training process sends it."""
        gauges = [cls.gauge(STEP_METRIC, [time for time, _, _ in rows], [step for _, step, _ in rows])]
        for name in sorted({name for _, _, values in rows for name in values}):
            points = [(time, values[name]) for time, _, values in rows if name in values]
            gauges.append(cls.gauge(name, [time for time, _ in points], [value for _, value in points]))
        return Batch(cls.resource(run, **resource), gauges)


class Requests(Parts):
    """Requests as they are in the spool, for exporters."""

    T0 = T0
    PROCESS = "p0123456789"

    @classmethod
    def rows(cls, rows: Mapping[int, Mapping[str, float]], start: int = T0) -> list[Series]:
        """Gauges from values by step, a second apart, as a training process sends them."""
        times = {step: start + 1_000_000_000 * index for index, step in enumerate(rows)}
        gauges: list[Series] = [cls.gauge(STEP_METRIC, list(times.values()), list(rows))]
        for name in dict.fromkeys(name for values in rows.values() for name in values):
            points = [(times[step], values[name]) for step, values in rows.items() if name in values]
            gauges.append(cls.gauge(name, [time for time, _ in points], [value for _, value in points]))
        return gauges

    @staticmethod
    def counter(name: str, times: Sequence[int], values: Sequence[float]) -> Sum:
        column = np.array(values, np.float64)
        return Sum(name, np.array(times, np.uint64), column, np.full(len(times), T0 - 1, np.uint64))

    @staticmethod
    def histogram(name: str, at: int) -> Histogram:
        """Five values: -1, 0.5, 1.5, 1.5, 30."""
        return Histogram(
            name,
            np.array([at], np.uint64),
            np.array([at - 1], np.uint64),
            np.array([5], np.uint64),
            np.array([32.5]),
            np.array([-1.0]),
            np.array([30.0]),
            np.array([0.0, 1.0, 2.0]),
            np.array([[1, 1, 2, 1]], np.uint64),
            temporality=Temporality.DELTA,
        )

    @staticmethod
    def exponential_histogram(name: str, at: int) -> ExponentialHistogram:
        """Base 2: one value in (-4, -2], two zeros, three in (1, 2], four in (2, 4]."""
        return ExponentialHistogram(
            name,
            np.array([at], np.uint64),
            np.array([at - 1], np.uint64),
            np.array([10], np.uint64),
            np.array([14.0]),
            np.array([-3.0]),
            np.array([4.0]),
            np.array([0]),
            np.array([2], np.uint64),
            np.array([0.0]),
            Buckets(np.array([0]), [np.array([3, 4], np.uint64)]),
            Buckets(np.array([1]), [np.array([1], np.uint64)]),
            temporality=Temporality.DELTA,
        )

    @staticmethod
    def metrics(number: int, *batches: Batch) -> Request:
        body = gzip.compress(encode_metrics(batches), 1)
        return Request(f"spool0-{number}", "metrics", body, sum(batch.points for batch in batches))

    @classmethod
    def logged(cls, number: int, series: Sequence[Series], **resource: str) -> Request:
        return cls.metrics(number, Batch(cls.resource(**resource), series))

    @classmethod
    def logs(cls, number: int, *events: Event, **resource: str) -> Request:
        body = gzip.compress(encode_events(cls.resource(**resource), events), 1)
        return Request(f"spool0-{number}", "logs", body, len(events))

    @staticmethod
    def media() -> list[Event]:
        """An event of each kind of media, at step 3. Its key is the kind."""
        picture = io.BytesIO()
        PIL.Image.new("RGB", (2, 3)).save(picture, "PNG")
        image = Image("", picture.getvalue(), "image/png", 2, 3, "c")
        sound = io.BytesIO()
        with wave.open(sound, "wb") as clip:
            clip.setnchannels(1)
            clip.setsampwidth(2)
            clip.setframerate(8000)
            clip.writeframes(bytes(8))
        figure = {"data": [{"type": "scatter", "y": [1, 3]}], "layout": {}}
        items = [
            Text("text", "a"),
            Table("table", ["x"], [[image]]),
            replace(image, key="image"),
            Images("images", [image, image]),
            Video("video", b"\x00\x00\x00\x18ftypmp42", "video/mp4"),
            Audio("audio", sound.getvalue(), "audio/wav", 8000),
            Figure("figure", json.dumps(figure)),
            Html("html", "<h1>é</h1>"),
        ]
        return [item.event(T0 + 3, 3) for item in items]

    @staticmethod
    def start(config: Mapping[str, Any], at: int = T0, **fields: Any) -> Event:
        return Event("tensormeter.run.start", at, {"config": dict(config), **fields})

    @staticmethod
    def reconfigured(config: Mapping[str, Any], at: int = T0 + 1) -> Event:
        return Event("tensormeter.run.config", at, {"config": dict(config)})

    @staticmethod
    def code(at: int = T0) -> Event:
        git = {"commit": "c" * 40, "branch": "main", "remote": "https://x/y.git", "dirty": True, "diff": "+lr = 1\n"}
        source = {"path": "/w/train.py", "text": "lr = 1\n"}
        body = {"git": git, "source": source, "packages": {"torch": "2.9.0"}, "python": "3.12.4", "gpus": []}
        return Event("tensormeter.run.code", at, body)

    @staticmethod
    def artifact(name: str, step: int = 7, at: int = T0 + 1) -> Event:
        body = {"name": name, "type": "model", "aliases": ["best"], "path": f"/w/{name}", "digest": "sha256:ab"}
        return Event("tensormeter.artifact", at, body, {"tensormeter.step": step})

    @staticmethod
    def end(state: str = "finished", at: int = T0 + 10**12) -> Event:
        return Event("tensormeter.run.end", at, {"state": state})
