"""Synthetic sample runs as OTLP requests, for browser tests and screenshots."""

import base64
import json
import struct
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.media_encoding import encode_audio, encode_video
from tensormeter.otlp.batch import STEP_METRIC, Batch, Buckets, Event, ExponentialHistogram, Gauge, Series
from tensormeter.otlp.encode import encode_events, encode_metrics

Post = Callable[[str, bytes], None]
"""Function that posts a request body to a path of the server, and raises if it is refused."""

SECOND = 10**9
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"${7*7}'


class Sender:
    """Sends data as one process of a run."""

    def __init__(self, post: Post, project: str, run: str, name: str, process: str = "p0", **resource: Any) -> None:
        self._post = post
        self._resource = {
            "service.name": project,
            "service.instance.id": f"{run}-{process}",
            "tensormeter.run.id": run,
            "tensormeter.run.name": name,
        } | {key.replace("__", "."): value for key, value in resource.items()}

    def series(self, *series: Series) -> None:
        self._post("/v1/metrics", encode_metrics([Batch(self._resource, list(series))]))

    def rows(
        self, times: NDArray[np.int64], steps: NDArray[np.int64], columns: Mapping[str, Any], **attributes: str
    ) -> None:
        """Send rows as `run.log` does: each value has the time of its row's step."""
        at = times.astype(np.uint64)
        gauges = [Gauge(STEP_METRIC, at, steps)]
        gauges += [
            Gauge(name, at, np.asarray(values, np.float64), attributes=attributes) for name, values in columns.items()
        ]
        self.series(*gauges)

    def event(self, name: str, when: int, body: Any = None, **attributes: Any) -> None:
        named = {key.replace("__", "."): value for key, value in attributes.items()}
        self._post("/v1/logs", encode_events(self._resource, [Event(f"tensormeter.{name}", when, body, named)]))

    def lines(self, *records: Event) -> None:
        """Send log lines, which are events without a name."""
        self._post("/v1/logs", encode_events(self._resource, records))


_SOURCE = "import torch\n\nfor step in range(100):\n\tprint('<b>step</b>', step)\n"
_DIFF = """diff --git a/train.py b/train.py
index fccf649..8aeea70 100644
--- a/train.py
+++ b/train.py
@@ -1,3 +1,4 @@ def main():
 import torch
-lr = 1e-3
+lr = 3e-4
+warmup = 200
 for step in range(100):
"""
GIT = {
    "commit": "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3",
    "branch": "feature/warmup",
    "remote": "https://github.com/example/vision.git",
    "dirty": True,
    "diff": _DIFF,
    "truncated": False,
    "untracked": ["notes.md", "data/"],
    "problem": "",
}


def code_body(git: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the event with a run's code."""
    return {
        "git": git,
        "source": {"path": "/home/ada/vision/train.py", "text": _SOURCE, "truncated": False},
        "packages": {f"package-{index:03}": f"1.{index}" for index in range(150)} | {"torch": "2.9.0"},
        "python": "3.12.4",
        "gpus": ["NVIDIA H200"],
    }


def send_artifact(sender: Sender, name: str, step: int, when: int, **fields: Any) -> None:
    body = {"name": name, "type": "model", "aliases": [], "folder": False, "size": None, "files": None, "digest": None}
    sender.event("artifact", when, body | {"problem": ""} | fields, tensormeter__key=name, tensormeter__step=step)


def send_artifacts(sender: Sender, began: int, stride: int = 1) -> None:
    """Send seven artifacts at steps up to 99 times the stride. A step takes a second."""
    folder = "/checkpoints/vision/2026-12-01/resnet50-baseline"
    digest = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

    def send(name: str, step: int, **fields: Any) -> None:
        send_artifact(sender, name, step * stride, began + step * stride * SECOND, **fields)

    for step in (20, 40, 60):
        send(f"step-{step}.pt", step, path=f"{folder}/step-{step}.pt", size=102_400_000, files=1, digest=digest)
    send("best.pt", 80, path=f"{folder}/best.pt", aliases=["best", "latest"], size=102_400_000, files=1)
    state = {"type": "checkpoint", "folder": True, "size": 3_400_000_000, "files": 17, "digest": digest}
    send("state", 90, path=f"{folder}/state", **state)
    send("gone.pt", 95, path=f"{folder}/gone.pt", problem="it does not exist")
    problem = "the digests of addresses are not computed"
    send("final", 99, uri="s3://models/vision/final.safetensors", problem=problem)


def send_gallery(post: Post) -> None:
    """Send data for all features of the page, in the projects vision and language."""
    now = time.time_ns()
    rng = np.random.default_rng(7)
    for index in range(12):
        _vision(post, index, now, rng)
    _language(post, now, rng)


def send_wide(post: Post, runs: int = 100, metrics: int = 300, points: int = 20) -> None:
    """Send a project of many runs with many metrics."""
    now = time.time_ns()
    steps = np.arange(points, dtype=np.int64)
    x = np.linspace(0, 4, points)
    for run in range(runs):
        times = now - 3600 * SECOND + steps * SECOND
        columns = {
            f"block{metric // 20:02}/weight{metric % 20:02}/norm": np.exp(-x * (1 + metric % 7) / 4) + run / runs
            for metric in range(metrics)
        }
        sender = Sender(post, "wide", f"wide{run:03}", f"sweep {run:03}")
        sender.event("run.start", int(times[0]), {"config": {"seed": run, "width": 2 ** (run % 4 + 5)}})
        sender.rows(times, steps, columns)
        sender.event("run.end", int(times[-1]), {"state": "finished"})


def send_hostile(post: Post) -> None:
    """Send runs with markup in all texts that a sender controls."""
    now = time.time_ns()
    steps = np.arange(10, dtype=np.int64)
    times = now + steps * SECOND
    for run in ("evil1", "evil2"):
        sender = Sender(post, HOSTILE, run, f"{HOSTILE}{run}", host__name=HOSTILE, process__command_line=HOSTILE)
        start = {
            "config": {HOSTILE: HOSTILE, "seed": run},
            "tags": [HOSTILE],
            "notes": HOSTILE,
            "group": HOSTILE,
            "job_type": HOSTILE,
        }
        sender.event("run.start", now, start)
        sender.rows(times, steps, {HOSTILE: steps * 1.0, f"section/{HOSTILE}": steps * 2.0}, split=HOSTILE)
        sender.series(
            histogram(HOSTILE, times, [np.linspace(-1, 1, 50)] * 10, HOSTILE),
            Gauge(
                "hw.gpu.utilization", times.astype(np.uint64), steps / 10, attributes={"hw.id": HOSTILE}, unit=HOSTILE
            ),
        )
        sender.event("alert", now, {"title": HOSTILE, "text": HOSTILE, "level": "ERROR"})
        sender.event("table", now, {"columns": [HOSTILE], "rows": [[HOSTILE]]}, tensormeter__key=HOSTILE)
        sender.event("text", now, {"text": HOSTILE, "media_type": "text/html"}, tensormeter__key=HOSTILE)
        sender.event("image", now, _image(3) | {"caption": HOSTILE}, tensormeter__key=HOSTILE)
        sender.lines(Event("", now, HOSTILE, {HOSTILE: HOSTILE}, severity_number=17, severity_text=HOSTILE))
        end = {"state": "failed", "message": HOSTILE, "traceback": HOSTILE, "dropped": {HOSTILE: 3}}
        sender.event("run.end", now + 10 * SECOND, end)


def histogram(
    name: str, times: NDArray[np.int64], samples: Sequence[NDArray[np.float64]], layer: str, scale: int = 3
) -> ExponentialHistogram:
    """Build a metric with one exponential histogram per sample array."""
    n = len(samples)

    def side(parts: list[NDArray[np.float64]]) -> Buckets:
        offsets = np.zeros(n, np.int64)
        counts = []
        for i, part in enumerate(parts):
            indices = np.ceil(np.log2(part) * 2**scale).astype(np.int64) - 1
            offsets[i] = indices.min(initial=0) if len(indices) == 0 else indices.min()
            counts.append(np.bincount(indices - offsets[i]).astype(np.uint64))
        return Buckets(offsets, counts)

    return ExponentialHistogram(
        name,
        times.astype(np.uint64),
        times.astype(np.uint64),
        np.array([len(sample) for sample in samples], np.uint64),
        np.array([sample.sum() for sample in samples]),
        np.array([sample.min() for sample in samples]),
        np.array([sample.max() for sample in samples]),
        scales=np.full(n, scale, np.int64),
        zero_counts=np.array([np.count_nonzero(sample == 0) for sample in samples], np.uint64),
        zero_thresholds=np.zeros(n),
        positive=side([sample[sample > 0] for sample in samples]),
        negative=side([-sample[sample < 0] for sample in samples]),
        attributes={"layer": layer},
    )


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode gray pixels of shape (height, width) as PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def _image(seed: int, size: int = 64) -> dict[str, Any]:
    y, x = np.mgrid[0:size, 0:size] / size
    rng = np.random.default_rng(seed)
    waves = sum(np.sin(2 * np.pi * (x * rng.uniform(-4, 4) + y * rng.uniform(-4, 4))) for _ in range(4))
    pixels = np.clip((waves + 3) * 42, 0, 255).astype(np.uint8)
    return {"data": png(pixels), "content_type": "image/png", "width": size, "height": size}


def _vision(post: Post, index: int, now: int, rng: np.random.Generator) -> None:
    states = {0: "running", 3: "failed", 5: "crashed", 8: "preempted"}
    state = states.get(index, "finished")
    n = 3000 if index < 6 else 1500
    began = now - (n * SECOND if index == 0 else (index + 1) * 7200 * SECOND)
    steps = np.arange(n, dtype=np.int64)
    times = began + steps * SECOND
    rate = float(10 ** rng.uniform(-4, -2.3))
    speed = 0.5 + 1.2 * rng.random()
    sender = Sender(
        post,
        "vision",
        f"vis{index:02}",
        f"resnet{(18, 34, 50)[index % 3]}-{('calm', 'brisk', 'amber', 'north')[index % 4]}-{index:02}",
        host__name="gpu-node-1",
        process__command_line="python train.py --config configs/imagenet.yaml --seed 3",
        process__runtime__version="3.11.7",
        vcs__ref__head__revision="4f1c2d9a7be0",
        vcs__ref__head__name="main",
    )
    config = {
        "learning_rate": rate,
        "optimizer": ("adamw", "sgd")[index % 2],
        "batch_size": (256, 512)[index // 2 % 2],
        "model": {"depth": (18, 34, 50)[index % 3], "width": 64},
        "seed": index,
    }
    tags = [["baseline"], [], ["ablation", "lr"]][index % 3]
    sender.event(
        "run.start", began, {"config": config, "tags": tags, "notes": "warmup 500 steps" if index == 1 else ""}
    )
    decay = np.exp(-steps / 600 * speed)
    noise = rng.standard_normal(n)
    loss = 0.35 + 2.1 * decay + 0.12 * noise * (0.3 + decay)
    norm = 1 + 3 * decay + 0.3 * np.abs(rng.standard_normal(n))
    norm[0] = np.nan
    if index == 3:
        loss[n - 400 :] += np.linspace(0, 6, 400) ** 1.4
        loss[-60:], norm[-60:], norm[-80] = np.nan, np.nan, np.inf
    if index == 0:
        loss[1700] = 4.9
    columns = {
        "train/loss": loss,
        "train/accuracy": np.clip(1 - 0.9 * decay + 0.03 * noise, 0, 1),
        "train/gradient_norm": norm,
        "train/learning_rate": rate * np.minimum(1, steps / 300) * (0.5 + 0.5 * np.cos(np.pi * steps / n)),
        "train/epoch": steps // 250,
        "throughput/images_per_second": 2400 + 90 * rng.standard_normal(n) - 900 * (steps % 500 == 499),
    }
    sender.rows(times, steps, columns)
    every = steps[::100]
    test = 0.42 + 1.9 * np.exp(-every / 620 * speed) + 0.02 * rng.standard_normal(len(every))
    sender.rows(times[::100], every, {"eval/loss": test, "eval/accuracy": np.clip(1 - test / 2.4, 0, 1)})
    if index in (0, 1):
        _extras(sender, times, steps, rng)
    if index == 5:
        sender.event("run.code", began, code_body(GIT | {"commit": "4f1c2d9a7be0", "branch": "main"}))
        send_artifacts(sender, began, stride=30)
    if index == 3:
        sender.event(
            "alert",
            int(times[-60]),
            {"title": "NaN", "text": "train/loss is NaN since step 2940", "level": "ERROR"},
            tensormeter__step=2940,
        )
    if state != "running":
        end = {
            "failed": {"message": "ValueError: loss is not finite", "exit_code": 1},
            "crashed": {"signal": "SIGKILL"},
        }
        dropped = {"dropped": {"ring_full": 1280}} if index == 5 else {}
        sender.event("run.end", int(times[-1]) + SECOND, {"state": state} | end.get(state, {}) | dropped)
    else:
        sender.event("run.heartbeat", now)


def _extras(sender: Sender, times: NDArray[np.int64], steps: NDArray[np.int64], rng: np.random.Generator) -> None:
    some = slice(None, None, 50)
    at = times[some]
    layers = [
        histogram(
            "gradients",
            at,
            [rng.standard_normal(400) * 10 ** (-2 - depth / 3 - i / len(at)) for i in range(len(at))],
            layer,
        )
        for depth, layer in enumerate(("conv1", "layer1", "layer2", "fc"))
    ]
    sender.series(*layers)
    each = times[::20].astype(np.uint64)
    n = len(each)

    def gauge(name: str, values: NDArray[np.float64], unit: str = "1", **attributes: str) -> Gauge:
        named = {key.replace("__", "."): value for key, value in attributes.items()}
        return Gauge(name, each, values, unit=unit, attributes=named)

    phases = {"data_loading": 0.035, "forward": 0.11, "backward": 0.2, "optimizer": 0.04}
    gauges = [
        gauge(
            "tensormeter.phase.duration",
            mean * (1 + 0.08 * rng.standard_normal(n))
            + (0.2 * (np.arange(n) % 25 == 24) if phase == "data_loading" else 0),
            "s",
            tensormeter__phase=phase,
        )
        for phase, mean in phases.items()
    ]
    for card in range(8):
        busy = np.clip(0.94 + 0.03 * rng.standard_normal(n), 0, 1) * (0.02 if card == 6 else 1)
        names = {"hw__id": f"GPU-{card:04}", "hw__name": "NVIDIA H100 80GB HBM3"}
        gauges.append(gauge("hw.gpu.utilization", busy, **names))
        gauges.append(gauge("hw.gpu.memory.utilization", np.full(n, 0.71 + card / 100), **names))
        gauges.append(gauge("hw.temperature", 62 + 4 * busy + rng.standard_normal(n), "Cel", **names))
    gauges += [
        gauge("system.cpu.utilization", 0.4 + 0.1 * rng.random(n)),
        gauge("system.memory.usage", 2e11 + 1e9 * np.arange(n) / n, "By"),
        gauge("process.memory.usage", 3.1e10 + 2e9 * np.arange(n) / n, "By"),
        gauge("tensormeter.log.duration", 8e-7 + 1e-7 * rng.random(n), "s"),
    ]
    sender.series(*gauges)
    for step in (500, 1000, 2000):
        image = _image(step) | {"caption": f"filters after {step} steps"}
        sender.event("image", int(times[step]), image, tensormeter__key="filters", tensormeter__step=step)
    rows = [
        [f"{name}", f"{guess}", round(0.98 - i * 0.037, 3), _image(i, 24)]
        for i, (name, guess) in enumerate(zip(("cat", "dog", "owl", "fox"), ("dog", "dog", "cat", "fox"), strict=True))
    ]
    table = {"columns": ["label", "predicted", "confidence", "picture"], "rows": rows}
    sender.event("table", int(times[2000]), table, tensormeter__key="confusions", tensormeter__step=2000)
    about = {"tensormeter__step": 2000}
    when = int(times[2000])
    images = [_image(number, 32) | {"caption": f"sample {number}"} for number in range(24)]
    sender.event("images", when, {"images": images}, tensormeter__key="generated", **about)
    for name, item in _clips().items():
        sender.event(name, when, item, tensormeter__key=f"{name} of the episode", **about)
    for number, figure in enumerate(FIGURES):
        sender.event(
            "figure", when, {"figure": json.dumps(figure), "caption": ""}, tensormeter__key=f"figure{number}", **about
        )
    sender.event("html", when, {"html": HTML, "caption": "a report"}, tensormeter__key="report", **about)
    phase = {"text": "warmup", "content_type": "text/plain"}
    sender.event("text", int(times[0]), phase, tensormeter__key="phase", tensormeter__step=0)
    sender.event(
        "text",
        int(times[400]),
        phase | {"first_step": 0, "count": 401},
        tensormeter__key="phase",
        tensormeter__step=400,
    )
    text = {"text": "A photo of a fox, sitting in the snow.\nA photo of an owl.", "media_type": "text/plain"}
    sender.event("text", int(times[2000]), text, tensormeter__key="captions", tensormeter__step=2000)


HTML = """<!doctype html><style>body{font:15px sans-serif;margin:16px} td,th{border:1px solid #ccc;padding:4px 10px}</style>
<h2>Evaluation</h2><table><tr><th>label<th>F1<tr><td>cat<td>0.91<tr><td>dog<td>0.88</table><p>Evaluated on 1,000 images.</p>"""

HOSTILE_HTML = """<h2>Evaluation</h2><p id=out>no script ran</p>
<p><a href="ADDRESS/">a link</a> <img src="ADDRESS/x.png" alt="no network">
<script>document.getElementById("out").textContent = "a script ran"; top.hacked = 1</script>
<link rel="stylesheet" href="ADDRESS/x.css"><meta http-equiv="refresh" content="0;url=ADDRESS/moved">
<iframe src="ADDRESS/frame"></iframe><style>@import "ADDRESS/y.css"; body { background: url(ADDRESS/z.png) }</style>
<form action="ADDRESS/"><button>send</button></form>"""
"""A document that tries what a logged document must not do. ADDRESS stands for a server."""

FIGURES = (
    {
        "data": [
            {
                "type": "scatter",
                "name": "train",
                "y": {"dtype": "f8", "bdata": base64.b64encode(np.exp(-np.arange(40.0) / 9).tobytes()).decode()},
            },
            {
                "type": "scatter",
                "name": "validation",
                "mode": "lines+markers",
                "x": [0, 10, 20, 30, 39],
                "y": [1.02, 0.5, 0.31, 0.22, 0.2],
                "line": {"dash": "dot"},
            },
        ],
        "layout": {
            "title": {"text": "Loss by epoch"},
            "xaxis": {"title": {"text": "epoch"}},
            "yaxis": {"title": {"text": "loss"}},
        },
    },
    {
        "data": [
            {"type": "bar", "name": "before", "x": ["cat", "dog", "owl", "fox"], "y": [0.7, 0.62, 0.4, 0.81]},
            {"type": "bar", "name": "after", "x": ["cat", "dog", "owl", "fox"], "y": [0.9, 0.88, 0.71, 0.93]},
            {"type": "pie", "labels": ["a"], "values": [1]},
        ],
        "layout": {"title": "Accuracy by class"},
    },
    {
        "data": [
            {
                "type": "heatmap",
                "z": (np.eye(4) * 0.8 + 0.05).tolist(),
                "x": ["cat", "dog", "owl", "fox"],
                "y": ["cat", "dog", "owl", "fox"],
            }
        ],
        "layout": {"title": {"text": "Confusion"}},
    },
    {
        "data": [{"type": "histogram", "x": np.random.default_rng(1).normal(size=500).round(3).tolist()}],
        "layout": {"title": "Residuals"},
    },
)


def _clips() -> dict[str, dict[str, Any]]:
    """A video and an audio clip, made by the agent's encoders."""
    frames = np.zeros((12, 64, 96, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:, :, 2] = np.linspace(40, 200, 96, dtype=np.uint8)
        frame[20:44, number * 6 : number * 6 + 20] = (250, 180, 40)
    content_type, video = encode_video({"shape": frames.shape, "dtype": "uint8", "fps": 6}, frames.tobytes())
    samples = np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000)[:, None]
    audio = encode_audio({"shape": samples.shape, "dtype": "float64", "sample_rate": 8000}, samples.tobytes())
    return {
        "video": {
            "data": video,
            "content_type": content_type,
            "width": 96,
            "height": 64,
            "frames": 12,
            "caption": "episode 7",
        },
        "audio": {"data": audio, "content_type": "audio/wav", "sample_rate": 8000, "caption": "a tone"},
    }


def _language(post: Post, now: int, rng: np.random.Generator) -> None:
    """Send two runs with eight ranks on two nodes; rank 5 of the first run is slow."""
    n = 800
    steps = np.arange(n, dtype=np.int64)
    for run, slow in (("llm1", 5), ("llm2", None)):
        began = now - n * 2 * SECOND
        for rank in range(8):
            times = began + steps * 2 * SECOND + rank * 1000
            sender = Sender(
                post,
                "language",
                run,
                f"llama-7b-{run}",
                f"rank{rank}",
                host__name=f"node-{rank // 4}",
                tensormeter__rank=rank,
                tensormeter__world_size=8,
            )
            config = {"config": {"model": "llama-7b", "context": 4096, "slow": slow is not None}} if rank == 0 else None
            sender.event("run.start", began, config)
            wait = 0.42 if rank == slow else 0.31
            columns = {
                "loss_metrics/global_avg_loss": 2 + 8 * np.exp(-steps / 180) + 0.05 * rng.standard_normal(n),
                "time_metrics/end_to_end(s)": wait + 0.01 * rng.standard_normal(n),
                "throughput(tps)": 52000 / wait + 900 * rng.standard_normal(n),
            }
            sender.rows(times, steps, columns)
            if run == "llm1":
                _phases(sender, times[::20], wait, rng)


def _phases(sender: Sender, times: NDArray[np.int64], wait: float, rng: np.random.Generator) -> None:
    """Send phases timed by host and device: the host runs ahead and waits in the optimizer update."""
    at, n = times.astype(np.uint64), len(times)
    shares = {"data_loading": (0.02, 0.0), "forward": (0.06, 0.3), "backward": (0.1, 0.6), "optimizer": (0.82, 0.1)}
    sender.series(
        *(
            Gauge(
                "tensormeter.phase.duration",
                at,
                value * (1 + 0.05 * rng.standard_normal(n)),
                unit="s",
                attributes={"tensormeter.phase": phase, "tensormeter.clock": clock},
            )
            for phase, (host, device) in shares.items()
            for clock, value in (("host", wait * host), ("device", wait * device), ("lag", wait * 0.3))
            if phase != "data_loading" or clock == "host"
        )
    )
