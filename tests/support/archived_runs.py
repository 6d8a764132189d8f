"""Runs that log everything, and all that a server's API answers about them, for the tests of archives."""

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from support.otlp import Parts
from support.servers import Server
from support.trainers import training_environment
from support.waiting import wait_for
from tensormeter.client import Client
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram, Scope, Sum, Summary, Temporality
from tensormeter.otlp.encode import encode_metrics
from tensormeter.otlp.media import Figure

__all__ = ["PROJECT", "answers_of", "fill"]

PROJECT = "everything / of it"
T0 = 1_750_000_000_000_000_000
S = 10**9

TRAINER = """
import io, json, logging, math, os, sys, wave
import numpy as np, tensormeter
from PIL import Image as Picture
rank, attempt, first, last = map(int, sys.argv[1:])
run = tensormeter.init("everything / of it", "all kinds", id="all", group="a group", job_type="train", tags=["x", "y"],
    notes="notes of the script", config={"lr": 1e-3, "nested": {"list": [1, math.nan], "none": None}})
run.define_metric("eval/*", summary="min", step_metric="epoch")
for step in range(first, last):
    row = {"train/loss": math.nan if step % 5 == 0 else 1 / (step + 1), "big": 2**60 + step, "zero": -0.0, "epoch": step // 10}
    run.log(row | ({"eval/score": step} if step % 7 == 0 else {}), step=step)
run.log({"once": math.inf})
rng = np.random.default_rng(rank)
print("printed by rank", rank)
print("to stderr", file=sys.stderr)
logging.getLogger("lib.of").warning("careful with %s", "this", extra={"answer": 42})
if (rank, attempt) == (0, 1):
    pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1); file.setsampwidth(2); file.setframerate(8000); file.writeframes(b"\\0\\1" * 400)
    run.log({"weights": tensormeter.Histogram(rng.normal(size=500)), "one": tensormeter.Image(pixels, caption="a caption"),
        "several": [tensormeter.Image(pixels[:4]), tensormeter.Image(pixels[4:])], "text": "some words", "html": tensormeter.Html("<p>hello</p>"),
        "clip": tensormeter.Audio(sound.getvalue()), "film": tensormeter.Video(b"\\x1aE\\xdf\\xa3 film"),
        "table": tensormeter.Table(["name", "picture", "number"], [["a", tensormeter.Image(pixels), math.nan], ["b", None, 2**53 + 1]],
            chart={"kind": "bar", "x": "name", "y": "number"})}, step=last)
    run.alert("an alert", "with text", "WARN")
    run.summary["best"] = {"score": 0.5, "at": 7}
    with open("artifact.bin", "wb") as file:
        file.write(b"weights")
    run.log_artifact("artifact.bin", type="model", aliases=["best"], step=3)
if attempt == 2:
    raise RuntimeError("the second attempt fails")
run.finish()
"""


def fill(server: Server, folder: Path) -> None:
    """Record runs on a server: two attempts, a fork, a run of another sender, and one that is in progress."""
    environment = training_environment(folder, server.url, "all") | {
        "TENSORMETER_RECORD_CODE": "1",
    }
    del environment["TENSORMETER_CONSOLE"]
    script = folder / "train.py"
    script.write_text(TRAINER)
    for attempt, (first, last, size) in enumerate([(0, 60, 2), (35, 80, 1)], 1):
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), *map(str, (rank, attempt, first, last))],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)},
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for rank in range(size)
        ]
        for process in ranks:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == (attempt == 2), errors.decode()
    _send_fork(server)
    _send_foreign(server)
    wait_for(lambda: server.get("/api/v1/runs/all")["state"] == "failed", "the end of the run")
    client = Client(server.url)
    client.run("fork", PROJECT).update(archived=True)
    client.run("all", PROJECT).update(name="edited name", tags=["edited", "é"], notes="edited notes", group="another")


def _send_fork(server: Server) -> None:
    """A fork that was killed: its losses are known from heartbeats only."""
    resource = Parts.resource("fork", "f0", PROJECT) | {"tensormeter.run.attempt": 1}
    start = {
        "config": {"lr": 2},
        "forked_from": {"run": "all", "step": 20},
        "tags": ["x"],
        "summary": {"why": "because"},
    }
    server.events(resource, Event("tensormeter.run.start", T0, start), Figure("shape", "{}").event(T0 + 5, 21))
    server.events(resource, Event("tensormeter.run.heartbeat", T0 + S, {"dropped": {"ring_full": 7, "damaged": 1}}))
    times = np.arange(T0, T0 + 5 * S, S).astype(np.uint64)
    steps = Gauge(STEP_METRIC, times, np.arange(21, 26))
    assert server.metrics(Batch(resource, [steps, Gauge("train/loss", times, np.linspace(0, 1, 5))])).status == 200


def _send_foreign(server: Server) -> None:
    """A sender without a run ID, with a scope that has attributes, sums, a summary, histograms and gaps."""
    resource = {"service.name": PROJECT, "service.instance.id": "other/sender", "deep": {"list": [1, 2.5, "x"]}}
    times = np.arange(T0, T0 + 6 * S, S).astype(np.uint64)
    scope = Scope("lib.other", "2.0", attributes={"flavor": "sweet", "n": 3})
    some, ones = times[:3], np.ones(3, np.uint64)
    series = [
        Gauge("load", times, np.array([1, 2.5, np.nan, -np.inf, 5, 6]), unit="1", description="of the host", scope=scope),
        Gauge("load", times - 7, np.arange(6) - 2**62, attributes={"cpu": 1, "mixed": [True, "a"]}),
        Sum("requests", times, np.arange(6), times, monotonic=True, unit="{request}", scope=scope),
        Sum("change", times, np.linspace(-1, 1, 6), times, monotonic=False, temporality=Temporality.DELTA),
        Histogram("sizes", some, some - 5, ones * 3, np.array([1.0, np.nan, 3]), np.zeros(3), np.ones(3),
                  np.array([1.0, 2.0]), np.array([[1, 0, 2], [3, 0, 0], [1, 1, 1]], np.uint64), unit="By"),
        Histogram("no buckets", some, some, ones, np.ones(3), np.zeros(3), np.ones(3), np.array([]), np.zeros((3, 0), np.uint64)),
        Summary("old", some, some, ones, np.ones(3), np.array([0.5, 1.0]), np.array([[1.0, np.inf]] * 3)),
    ]  # fmt: skip
    assert server.metrics(Batch(resource, series)).status == 200
    request = ExportMetricsServiceRequest.FromString(encode_metrics([Batch(resource, [series[0]])]))
    for metric in request.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.gauge.data_points:
            point.time_unix_nano += S // 2
            point.ClearField("as_double")
            point.flags = 1
    assert server.post("/v1/metrics", request.SerializeToString()).status == 200
    record = Event(
        "", T0 + 5, {"a": [1, None]}, {"k": 1.5}, severity_number=3, trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331", flags=1, observed_time=T0 + 9, scope=scope,
    )  # fmt: skip
    bare = Event("other.event", T0 + 6, b"bytes", {"list": [1, 2]}, scope=Scope("tensormeter"))
    server.events(resource, record, bare)


def answers_of(server: Server, project: str = PROJECT, metrics: Collection[str] | None = None) -> dict[str, Any]:
    """All that the API answers about a project's runs, without what is the server's own: arrival times and numbers.

    Args:
        server: Server to ask.
        project: Project of the runs.
        metrics: Names of the metrics whose points are read; by default, all.
    """
    answers: dict[str, Any] = {}
    everything = {"project": project, "filter": "archived = true or archived = false", "sort": "id"}
    listed = server.get("/api/v1/runs", fields="config,summary", **everything)
    answers["runs"] = listed
    answers["fields"] = server.get("/api/v1/fields", project=project)
    for run in listed["runs"]:
        answers |= {
            f"{run['id']} {name}": answer for name, answer in _answers_of_run(server, project, run["id"], metrics)
        }
    return json.loads(json.dumps(_normalized(answers)))


def _answers_of_run(
    server: Server, project: str, run: str, chosen: Collection[str] | None
) -> Iterator[tuple[str, Any]]:
    def get(part: str, **query: object) -> Any:
        return server.get(f"/api/v1/runs/{run}{part}", project=project, **query)

    yield "details", get("")
    metrics = get("/metrics")
    yield "metrics", metrics
    yield "sections", get("/sections")
    yield "attempts", get("/attempts")
    for name in dict.fromkeys(metric["name"] for metric in metrics["metrics"]):
        if chosen is not None and name not in chosen:
            continue
        yield f"series {name}", get("/series", metric=name, x="time", attempt="all")
        yield f"line {name}", get("/series", metric=name)
        yield f"query {name}", server.query(run, project=project, metrics=[name], max_points=50, parents=True)
        yield f"ranks {name}", get("/ranks", metric=name)
        yield f"distributions {name}", get("/distributions", metric=name, attempt="all", exact="true")
        yield f"histograms {name}", get("/histograms", metric=name)
    events = get("/events")
    yield "events", events
    yield "logs", get("/logs", after="0-0", max_text=1 << 20)
    for digest in sorted(_digests(events)):
        answer = server.http.request("GET", f"{server.url}/api/v1/runs/{run}/media/{digest}?project={project}")
        yield f"media {digest}", [answer.status, answer.headers["Content-Type"], answer.data.hex()]


def _digests(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "content_type" in value and "digest" in value:
            yield value["digest"]
        for item in value.values():
            yield from _digests(item)
    elif isinstance(value, list):
        for item in value:
            yield from _digests(item)


def _normalized(value: Any) -> Any:
    """Remove arrival times and the server's numbers of events and lines, and round means, which depend on the order of sums."""
    if isinstance(value, Mapping):
        own = {"lag", "cursor", "older", "newer", "next"} | (
            {"id"} if "severity_number" in value or "severity" in value else set()
        )
        own |= {"last_time"} if "last_time" in value and "notes" in value else set()
        rounded = {"mean": float(f"{value['mean']:.12g}")} if isinstance(value.get("mean"), float) else {}
        return {key: _normalized(item) for key, item in {**value, **rounded}.items() if key not in own}
    return [_normalized(item) for item in value] if isinstance(value, list) else value
