"""A real MLflow server, read back through MLflow's client."""

import math
import os
import re
import subprocess
import sys

import pytest
import urllib3

from tensormeter.exporter import Accepted, Retry
from tensormeter.otlp.batch import Batch
from tensormeter.otlp.media import Image, Table, Text

PIXEL = b"\x89PNG not looked into"


@pytest.fixture(scope="module")
def server(tmp_path_factory, clean_environment, free_port, wait_for):
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
        ],
        env=clean_environment | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        cwd=folder,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )  # fmt: skip
    http = urllib3.PoolManager(retries=False, timeout=10)

    def healthy():
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return http.request("GET", f"http://127.0.0.1:{port}/health").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    wait_for(healthy, "MLflow serves")
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, 15)
    process.wait(300)
    log.close()


@pytest.fixture(scope="module", autouse=True)
def client(server):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        from mlflow import MlflowClient

        yield MlflowClient(server)


@pytest.fixture
def exporter(server, config):
    from tensormeter_exporters.mlflow import MlflowExporter

    return MlflowExporter(config(tracking_uri=server))


def the_run(client, project):
    experiment = client.get_experiment_by_name(project)
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def history(client, run, key):
    return [(metric.step, metric.value, metric.timestamp) for metric in client.get_metric_history(run.info.run_id, key)]


def test_a_whole_run(make, exporter, client):
    rows = {step: {"train/loss": 1 / (step + 1), "tokens": 1000 * step} for step in range(600)}
    rows[3]["odd"] = math.nan
    config = {"lr": 0.001, "net": {"depth": 2, "name": "ü"}, "tags": ["a"], "long": "x" * 7000}
    assert exporter.export(make.logs(1, make.start(config), project="whole")).rejected == 1  # `long`
    request = make.logged(2, make.rows(rows), project="whole")
    assert exporter.export(request) == Accepted()
    assert exporter.export(request) == Accepted()  # it comes again
    exporter.export(make.logs(3, make.end(at=make.T0 + 10**12), project="whole"))
    run = the_run(client, "whole")
    assert run.info.status == "FINISHED"
    assert run.info.end_time == (make.T0 + 10**12) // 10**6
    assert run.info.run_name == "name of run1"
    assert run.data.params == {"lr": "0.001", "net.depth": "2", "net.name": "ü", "tags": '["a"]'}
    assert run.data.tags["tensormeter.run.id"] == "run1"
    found = history(client, run, "train/loss")
    assert [(step, value) for step, value, _ in found] == [(step, 1 / (step + 1)) for step in range(600)]
    assert found[7][2] == make.T0 // 10**6 + 7000
    assert len(history(client, run, "tokens")) == 600
    ((step, value, _),) = history(client, run, "odd")
    assert step == 3
    assert math.isnan(value)


def test_an_agent_after_another_goes_on_with_the_run(make, exporter, client, server, config):
    from tensormeter_exporters.mlflow import MlflowExporter

    exporter.export(make.logs(1, make.start({"lr": 1}), project="again"))
    another = MlflowExporter(config(tracking_uri=server))
    assert another.export(make.logs(2, make.start({"lr": 2, "new": 3}), project="again")) == Accepted()
    another.export(make.logs(3, make.end("crashed"), project="again"))
    run = the_run(client, "again")
    assert run.info.status == "FAILED"
    assert run.data.params == {"lr": "1", "new": "3"}
    assert run.data.tags["tensormeter.config.lr"] == "2"  # MLflow never changes a parameter


def test_group_tags_notes_and_what_is_configured_later(make, exporter, client):
    said = {"group": "sweep", "tags": ["baseline", "a b"], "notes": "with warm-up"}
    exporter.export(make.logs(1, make.start({"lr": 1}, **said), project="described"))
    client.set_tag(the_run(client, "described").info.run_id, "mlflow.note.content", "by hand")
    later = make.reconfigured({"lr": 2, "parameters": 124})
    exporter.export(make.logs(2, later, make.start({"lr": 1}, **said), project="described"))
    run = the_run(client, "described")
    assert run.data.params == {"lr": "1", "parameters": "124"}
    tags = ("tensormeter.group", "baseline", "a b", "mlflow.note.content", "tensormeter.config.lr")
    assert [run.data.tags[tag] for tag in tags] == ["sweep", "true", "true", "by hand", "2"]


def test_processes_do_not_mix(make, exporter, client):
    request = make.metrics(
        1,
        Batch(make.resource(project="ranks", process="aaaaaaaaaa"), make.rows({1: {"loss": 1.0}})),
        Batch(make.resource(project="ranks", process="bbbbbbbbbb"), make.rows({1: {"loss": 2.0}})),
    )
    assert exporter.export(request) == Accepted()
    run = the_run(client, "ranks")
    assert [value for _, value, _ in history(client, run, "loss")] == [1.0]
    assert [value for _, value, _ in history(client, run, "process-bbbbbbbb/loss")] == [2.0]


def test_media_become_artifacts(make, exporter, client, tmp_path):
    media = [
        Table("eval/samples", ["x"], [[1], ["b"]]).event(make.T0, 5),
        Image("../digit", PIXEL, "image/png", 1, 1).event(make.T0, 6),
        Text("note", "hello").event(make.T0, 7),
    ]
    assert exporter.export(make.logs(1, *media, project="media")) == Accepted()
    run = the_run(client, "media").info.run_id
    table = client.download_artifacts(run, "tables/eval/samples-5.json", str(tmp_path))
    with open(table) as file:
        assert file.read() == '{"columns": ["x"], "data": [[1], ["b"]]}'
    (image,) = client.list_artifacts(run, "images")
    assert re.fullmatch("images/digit_[0-9a-f]{8}-6.png", image.path), "a suffix keeps it from that of `digit`"
    assert [item.path for item in client.list_artifacts(run, "texts")] == ["texts/note-7.txt"]


def test_a_server_that_is_away_is_an_outcome(make, config, free_port):
    from tensormeter_exporters.mlflow import MlflowExporter

    exporter = MlflowExporter(config(tracking_uri=f"http://127.0.0.1:{free_port()}"))
    assert isinstance(exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}))), Retry)
