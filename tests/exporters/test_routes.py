"""One training run, over every route that ends in the experiment server, leaves the same there."""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import TENSORS, EventAccumulator

from support.ports import reserve_port
from support.processes import run_python
from support.programs import program

ROOT = Path(__file__).parents[2]

TRAINER = """
import math, sys
import numpy, tensormeter
project, options = sys.argv[1], dict(item.split("=", 1) for item in sys.argv[2:])
config = {"lr": 1e-3, "layers": [64, 10], "optimizer": {"name": "adam"}}
labels = {"group": "of same", "job_type": "eval", "tags": ["a", "b c"], "notes": "line 1\\nline 2"}
with tensormeter.init(project, name="the same", config=config, id="same-run", **labels) as run:
    for step in range(300):
        run.log({"train/loss": 1 / (step + 1), "train/tokens": 2**60 + step}, step)
        if step % 50 == 0:
            run.log({"eval/accuracy": numpy.float32(step / 300), "eval/nan": math.nan}, step)
        if step % 100 == 0:
            pixels = numpy.full((4, 6, 3), step % 256, numpy.uint8)
            run.log({
                "samples/table": tensormeter.Table(["prompt", "score", "ok"], [["\u00e4 %d" % step, step / 7, True], ["b", math.nan, None]]),
                "samples/image": tensormeter.Image(pixels, caption="step %d" % step),
                "samples/text": tensormeter.Text("line %d\\nline 2" % step),
                "samples/grid": [pixels, tensormeter.Image(pixels, caption="second")],
                "samples/video": tensormeter.Video(numpy.stack([pixels] * 3), fps=10),
                "samples/audio": tensormeter.Audio(numpy.linspace(-1, 1, 50), 8000),
                "samples/html": tensormeter.Html("<p>%d" % step),
                "phase": "warmup",
                "weights": tensormeter.Histogram(numpy.linspace(-step, 2 * step + 1, 500)),
                "counted": tensormeter.Histogram(np_histogram=([1, 5, 2], [-1.0, 0.0, 0.5, 9.0])),
            }, step)
    run.log({"late": math.inf}, 7)
    run.update_config({"parameters": 124_000_000, "lr": 1e-4})
    run.alert("loss spike", "twice the mean", level="WARN")
"""


def train(environment, project, **variables):
    done = run_python(
        "-c", TRAINER, project, environment=environment | {"TENSORMETER_FINISH_TIMEOUT": "300"} | variables, check=True
    )
    assert "not been fully delivered" not in done.stderr
    assert "rejected" not in done.stderr


def normalized(runs):
    """A run as the server tells of it, but for what is different in two runs of one script: ids and clocks.

    Times become their place among all times of the run, so their order and equality stay.
    """
    runs = copy.deepcopy(runs)
    times = sorted(
        {
            at
            for run in runs.values()
            for metric_series in run["series"].values()
            for series in metric_series
            for at in series["time"]
        }
    )
    place = {at: index for index, at in enumerate(times)}
    processes = sorted({process["id"] if isinstance(process, dict) else process
                        for run in runs.values() for process in run["about"]["processes"]})  # fmt: skip
    for run in runs.values():
        for metric_series in run["series"].values():
            for series in metric_series:
                series["time"] = [place[at] for at in series["time"]]
    text = json.dumps(runs, sort_keys=True)
    for index, process in enumerate(processes):
        text = text.replace(process, f"process-{index}")
    document = json.loads(text)
    for run in document.values():
        _without_clocks(run["about"])
        _without_clocks(run["metrics"])
        _without_clocks(run["events"])
    return document


def _without_clocks(document):
    """Takes out, in place, when and where this very process ran."""
    if isinstance(document, dict):
        for key in list(document):
            if (
                key in ("time", "first", "started", "ended", "process.pid", "created", "updated", "lag")
                or key == "tensormeter.run.attempt.provisional"  # only the server can confirm a number
                or "time" in key
            ):
                del document[key]
            else:
                _without_clocks(document[key])
    elif isinstance(document, list):
        for item in document:
            _without_clocks(item)


@pytest.fixture(scope="module")
def environment(tmp_path_factory, clean_environment):
    folder = tmp_path_factory.mktemp("routes")
    buffers = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else folder
    buffer = buffers / f"tensormeter-routes-{os.getpid()}"
    buffer.mkdir()
    yield clean_environment | {
        "TENSORMETER_DIR": str(folder / "runs"),
        "TENSORMETER_BUFFER_DIR": str(buffer),
        "TENSORMETER_SCHEDULE_DELAY": "0.1",
        "TENSORMETER_CONSOLE": "off",
        "TENSORMETER_SAMPLE_INTERVAL": "0",  # what sensors see is never the same twice
        "TENSORMETER_SELF_METRICS_INTERVAL": "0",
    }
    shutil.rmtree(buffer)


@pytest.fixture(scope="module")
def direct(environment, experiment_server):
    """The run as the server has it when it is sent there directly."""
    train(environment, "direct", TENSORMETER_ENDPOINT=experiment_server.url)
    runs = experiment_server.everything("direct")
    run = runs["same-run"]
    assert run["about"]["state"] == "finished"
    config = {"lr": 1e-4, "layers": [64, 10], "optimizer": {"name": "adam"}, "parameters": 124_000_000}
    assert run["about"]["config"] == config
    description = [run["about"][key] for key in ("group", "job_type", "tags", "notes")]
    assert description == ["of same", "eval", ["a", "b c"], "line 1\nline 2"]
    (loss,) = run["series"]["train/loss"]
    assert loss["step"] == list(range(300))
    assert loss["value"] == [1 / (step + 1) for step in range(300)]
    assert run["series"]["train/tokens"][0]["value"] == [2**60 + step for step in range(300)]
    assert run["series"]["late"][0]["value"] == ["Infinity"]
    events = [event["name"] for event in run["events"]]
    assert (events[0], events[-1]) == ("tensormeter.run.start", "tensormeter.run.end")
    kinds = ("table", "image", "images", "video", "audio", "html", "text", "alert")
    assert [events.count(f"tensormeter.{kind}") for kind in kinds] == [3, 3, 3, 3, 3, 3, 3 + 2, 1]
    assert len(run["images"]) == 3 + 3 + 1  # pictures, which the lists have too, videos, and a sound
    assert [point["x"] for point in run["histograms"]["weights"]] == [0, 100, 200]
    assert [point["count"] for point in run["histograms"]["counted"]] == [8] * 3
    return normalized(runs)


@pytest.fixture(scope="module")
def collector(experiment_server, tmp_path_factory, wait_for):
    """OpenTelemetry's Collector: OTLP in by gRPC and HTTP, OTLP out by HTTP to the server."""
    command = program("OTELCOL")
    if command is None:
        pytest.skip("OTELCOL names no program, and otelcol is not installed")
    grpc, http = reserve_port(), reserve_port()
    protocols = {"grpc": {"endpoint": f"127.0.0.1:{grpc}"}, "http": {"endpoint": f"127.0.0.1:{http}"}}
    pipeline = {"receivers": ["otlp"], "processors": ["batch"], "exporters": ["otlp_http"]}
    config = {
        "receivers": {"otlp": {"protocols": protocols}},
        "processors": {"batch": {"timeout": "100ms"}},
        "exporters": {"otlp_http": {"endpoint": experiment_server.url}},
        "service": {"pipelines": {"metrics": pipeline, "logs": pipeline}, "telemetry": {"metrics": {"level": "none"}}},
    }
    folder = tmp_path_factory.mktemp("collector")
    (folder / "config.yaml").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([command, "--config", "config.yaml"], stdout=log, stderr=log, cwd=folder)

    def listens():
        assert process.poll() is None, (folder / "log").read_text()
        for port in (grpc, http):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    return False
        return True

    wait_for(listens, "the collector listens")
    yield {"grpc": f"http://127.0.0.1:{grpc}", "http/protobuf": f"http://127.0.0.1:{http}"}
    process.terminate()
    process.wait(300)


def arrived(server, project, expected):
    """Whether as much is there as was sent; a Collector answers before it has delivered."""
    run = server.everything(project).get("same-run")
    return (
        run is not None
        and run["about"]["state"] == "finished"
        and run["about"]["points"] == expected["same-run"]["about"]["points"]
        and len(run["events"]) == len(expected["same-run"]["events"])
    )


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_run_through_a_collector_arrives_as_if_sent_directly(
    environment, experiment_server, direct, collector, wait_for, protocol
):
    project = f"collector-{protocol[:4]}"
    train(
        environment,
        project,
        TENSORMETER_EXPORTERS="otlp",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector[protocol],
    )
    wait_for(lambda: arrived(experiment_server, project, direct), f"all is there through {protocol}")
    assert renamed(normalized(experiment_server.everything(project)), project) == direct


def test_a_collector_can_be_the_endpoint(environment, experiment_server, direct, collector, wait_for):
    train(environment, "as-endpoint", TENSORMETER_ENDPOINT=collector["http/protobuf"])
    wait_for(lambda: arrived(experiment_server, "as-endpoint", direct), "all is there")
    assert renamed(normalized(experiment_server.everything("as-endpoint")), "as-endpoint") == direct


def test_a_run_through_a_file_arrives_as_if_sent_directly(environment, experiment_server, direct, tmp_path):
    """The files hold small requests, and are rotated by size."""
    options = {"directory": tmp_path / "otlp", "max_bytes": 20_000}
    train(
        environment,
        "file",
        TENSORMETER_EXPORTERS="jsonl",
        TENSORMETER_MAX_EXPORT_BATCH_SIZE="60",
        TENSORMETER_EXPORTER_OPTIONS=",".join(f"jsonl.{name}={value}" for name, value in options.items()),
    )
    files = sorted(str(path) for path in (tmp_path / "otlp").glob("*.jsonl"))
    assert len(files) >= 2
    lines = [json.loads(line) for path in files if "metrics-" in path for line in Path(path).read_text().splitlines()]
    assert max(json.dumps(line).count('"timeUnixNano"') for line in lines) <= 60
    command = [sys.executable, "-m", "tensormeter", "import", "--endpoint", experiment_server.url, *files]
    for _ in range(2):  # the second time changes nothing
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert renamed(normalized(experiment_server.everything("file")), "file") == direct


def test_a_broken_destination_does_not_delay_others(environment, experiment_server, direct, tmp_path):
    """The broken one does not delay the others: they have everything while it still fails."""
    done = run_python(
        "-c",
        TRAINER,
        "several",
        environment=environment
        | {
            "TENSORMETER_DIR": str(tmp_path / "runs"),
            "TENSORMETER_LINGER_TIMEOUT": "0",
            "TENSORMETER_ENDPOINT": experiment_server.url,
            "TENSORMETER_EXPORTERS": "otlp:broken,jsonl,experiment",
            "TENSORMETER_EXPORTER_OPTIONS": f"jsonl.directory={tmp_path},otlp:broken.endpoint=http://127.0.0.1:{reserve_port()}",
        },
        check=True,
    )
    assert "not been fully delivered to" in done.stderr
    assert renamed(normalized(experiment_server.everything("several")), "several") == direct
    assert list(tmp_path.glob("metrics-*.jsonl"))


def test_all_destinations_work_in_one_agent(environment, experiment_server, direct, tmp_path):
    """Every destination that needs no separate server, in one agent. When it ends, nothing is left to deliver."""
    options = {
        "jsonl.directory": tmp_path / "otlp",
        "otlp.endpoint": experiment_server.url,
        "prometheus.port": reserve_port(),
        "tensorboard.directory": tmp_path / "tb",
        "wandb.directory": tmp_path / "wb",
    }
    train(
        environment,
        "all",
        TENSORMETER_DIR=str(tmp_path / "runs"),
        TENSORMETER_ENDPOINT=experiment_server.url,
        TENSORMETER_EXPORTERS="console,experiment,jsonl,otel:console,otlp,prometheus,tensorboard,wandb",
        TENSORMETER_EXPORTER_OPTIONS=",".join(f"{name}={value}" for name, value in options.items()),
    )
    # The server gets it twice, once without batch ids; every point is there once. (Its counts of points count arrivals.)
    run = renamed(normalized(experiment_server.everything("all")), "all")["same-run"]
    assert run["series"] == direct["same-run"]["series"]
    assert run["about"]["config"] == direct["same-run"]["about"]["config"]
    for what in ("events", "images", "histograms"):
        assert run[what] == direct["same-run"][what]
    (events,) = (tmp_path / "tb/all/same-run").glob("*/events.out.tfevents.*")
    loaded = EventAccumulator(str(events.parent), {TENSORS: 0})
    loaded.Reload()
    assert [event.step for event in loaded.Tensors("train/loss")] == list(range(300))
    assert list((tmp_path / "wb").rglob("*.wandb"))
    assert list((tmp_path / "otlp").glob("metrics-*.jsonl"))
    assert "all" not in os.listdir(tmp_path / "runs" / "runs")


def test_no_route_makes_attributes_of_steps(direct, experiment_server):
    for metric in experiment_server.get("/runs/same-run/metrics", project="direct")["metrics"]:
        assert metric["attributes"] == [{}]
    assert {metric["name"] for metric in direct["same-run"]["metrics"]} >= {"train/loss", "tensormeter.step"}


def test_import_reports_lines_that_it_leaves_out(environment, experiment_server, tmp_path):
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"resourceLogs":[]}\n\nnonsense\n{"resourceSpans":[]}\n')
    done = run_python(
        "-m",
        "tensormeter",
        "import",
        "--endpoint",
        experiment_server.url,
        file,
        environment=environment | {"COLUMNS": "200"},
    )
    assert done.returncode == 1
    assert "mixed.jsonl:3: skipped, not JSON" in done.stdout
    assert "mixed.jsonl:4: skipped, expected a JSON object with the key resourceMetrics or resourceLogs" in done.stdout


def renamed(document, project):
    return json.loads(json.dumps(document).replace(f'"{project}"', '"direct"'))


def test_the_comparison_sees_differences(direct):
    def value(run):
        run["series"]["train/loss"][0]["value"][17] += 1e-9

    def cell(run):
        next(event for event in run["events"] if event["name"] == "tensormeter.table")["body"]["rows"][0][1] += 1e-9

    def pixel(run):
        digest = min(run["images"])
        run["images"][digest] = run["images"][digest][:-1] + "f"

    def bucket(run):
        run["histograms"]["weights"][1]["counts"][0] += 1

    for change in (value, cell, pixel, bucket):
        changed = copy.deepcopy(direct)
        change(changed["same-run"])
        assert changed != direct
