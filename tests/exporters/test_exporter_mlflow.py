"""A real MLflow server, read back through MLflow's client."""

import math
import re

import pytest

from support.mlflow_server import serve_mlflow
from support.otlp import T0
from support.ports import reserve_port
from tensormeter.exporter import Accepted, ExporterConfig, Rejected, Retry
from tensormeter.otlp.batch import Batch, Event
from tensormeter.otlp.media import Image, Table, Text

PIXEL = b"\x89PNG not looked into"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    options = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with serve_mlflow(folder, *options) as address:
        yield address


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


def test_a_run_arrives_whole_and_once(make, exporter, client):
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
    losses = history(client, run, "train/loss")
    assert [(step, value) for step, value, _ in losses] == [(step, 1 / (step + 1)) for step in range(600)]
    assert losses[7][2] == make.T0 // 10**6 + 7000
    assert len(history(client, run, "tokens")) == 600
    ((step, value, _),) = history(client, run, "odd")
    assert step == 3
    assert math.isnan(value)


def test_code_and_artifacts_arrive(make, exporter, client):
    events = make.start({}), make.code(), make.artifact("a.pt"), make.artifact("b/../\u00fc")
    assert exporter.export(make.logs(1, *events, project="code")) == Accepted()
    run = the_run(client, "code")
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    assert run.data.tags["mlflow.source.name"] == "/w/train.py"
    assert run.data.tags["tensormeter.artifact.a.pt"] == "/w/a.pt"
    (changed,) = [tag for tag in run.data.tags if tag.startswith("tensormeter.artifact.b")]
    assert run.data.tags[changed] == "/w/b/../\u00fc"
    files = {file.path for file in client.list_artifacts(run.info.run_id, "code")}
    assert files == {"code/packages.txt", "code/script.py", "code/uncommitted.diff"}


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


def test_group_tags_notes_and_later_configuration_arrive(make, exporter, client):
    description = {"group": "sweep", "job_type": "eval", "tags": ["baseline", "a b"], "notes": "with warm-up"}
    exporter.export(make.logs(1, make.start({"lr": 1}, **description), project="described"))
    client.set_tag(the_run(client, "described").info.run_id, "mlflow.note.content", "by hand")
    later = make.reconfigured({"lr": 2, "parameters": 124})
    exporter.export(make.logs(2, later, make.start({"lr": 1}, **description), project="described"))
    run = the_run(client, "described")
    assert run.data.params == {"lr": "1", "parameters": "124"}
    tags = (
        "tensormeter.group",
        "tensormeter.job_type",
        "baseline",
        "a b",
        "mlflow.note.content",
        "tensormeter.config.lr",
    )
    assert [run.data.tags[tag] for tag in tags] == ["sweep", "eval", "true", "true", "by hand", "2"]


def test_the_summary_becomes_tags(make, exporter, client):
    def state(number, **summary):
        exporter.export(
            make.logs(number, Event("tensormeter.run.config", T0 + number, {"summary": summary}), project="stated")
        )
        tags = the_run(client, "stated").data.tags
        return {name: value for name, value in tags.items() if name.startswith("tensormeter.summary.")}

    first = {
        "tensormeter.summary.best": "0.5",
        "tensormeter.summary.test/f1": "0.25",
        "tensormeter.summary.note": "good",
    }
    assert state(1, best=0.5, test={"f1": 0.25}, note="good", gone=None) == first
    assert state(2, best=0.75, test={"f1": 0.25}, note=None) == {
        "tensormeter.summary.best": "0.75",
        "tensormeter.summary.test/f1": "0.25",
    }


def test_too_long_parameters_do_not_cost_the_others(make, exporter, client):
    long = {f"prompt{i}": "z" * 10_000 for i in range(100)}
    assert exporter.export(make.logs(1, make.start({"lr": 1, **long, "wd": 2}), project="long")).rejected == 100
    assert (
        exporter.export(make.logs(2, make.reconfigured({"lr": 3, **long, "late": 4}), project="long")).rejected == 100
    )
    run = the_run(client, "long")
    assert run.data.params == {"lr": "1", "wd": "2", "late": "4"}
    assert run.data.tags["tensormeter.config.lr"] == "3"


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
        Table("eval/samples", ["x"], [[1], ["b"]], {"kind": "histogram", "x": "x"}).event(make.T0, 5),
        Image("../digit", PIXEL, "image/png", 1, 1).event(make.T0, 6),
        Text("note", "hello").event(make.T0, 7),
    ]
    assert exporter.export(make.logs(1, *media, project="media")) == Accepted()
    run = the_run(client, "media").info.run_id
    table = client.download_artifacts(run, "tables/eval/samples-5.json", str(tmp_path))
    with open(table) as file:
        chart = '{"kind": "histogram", "x": "x"}'
        assert file.read() == f'{{"columns": ["x"], "data": [[1], ["b"]], "chart": {chart}}}'
    (image,) = client.list_artifacts(run, "images")
    assert re.fullmatch("images/digit_[0-9a-f]{8}-6.png", image.path), "a suffix keeps it from that of `digit`"
    assert [item.path for item in client.list_artifacts(run, "texts")] == ["texts/note-7.txt"]


def test_each_kind_of_media_becomes_a_file(make, exporter, client):
    assert exporter.export(make.logs(1, *make.media(), project="kinds")) == Accepted()
    run = the_run(client, "kinds")
    paths = []

    def walk(folder=None):
        for item in client.list_artifacts(run.info.run_id, folder):
            walk(item.path) if item.is_dir else paths.append(item.path)

    walk()
    assert sorted(paths) == [
        "audio/audio-3.wav",
        "figures/figure-3.json",
        "html/html-3.html",
        "images/image-3.png",
        "images/images-3/0.png",
        "images/images-3/1.png",
        "tables/table-3.json",
        "tables/table-3/0-0.png",
        "texts/text-3.txt",
        "videos/video-3.mp4",
    ]
    assert len(exporter.media) == len(make.media())


def test_a_server_that_is_away_is_tried_again(make, config):
    from tensormeter_exporters.mlflow import MlflowExporter

    exporter = MlflowExporter(config(tracking_uri=f"http://127.0.0.1:{reserve_port()}"))
    assert isinstance(exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}))), Retry)


@pytest.fixture
def exporter_of(server, tmp_path):
    """Makes exporters as one agent after another would, with a separate state."""

    def exporter_of(**options):
        from tensormeter_exporters.mlflow import MlflowExporter

        given = {"tracking_uri": server, **options}
        return MlflowExporter(
            ExporterConfig(
                endpoint="", token=None, timeout=60.0, destination="mlflow", options=given, state=tmp_path / "state"
            )
        )

    return exporter_of


def test_a_deleted_experiment_is_waited_for(make, exporter_of, client):
    exporter = exporter_of()
    assert exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}), project="deleted")) == Accepted()
    experiment = client.get_experiment_by_name("deleted").experiment_id
    run = the_run(client, "deleted")
    client.delete_experiment(experiment)
    requests = [
        make.logged(2, make.rows({2: {"loss": 2.0}}), project="deleted"),
        make.logs(3, make.start({"lr": 1}), project="deleted"),
        make.logs(4, Text("note", "hello").event(make.T0, 7), project="deleted"),
        make.logs(5, make.end(), project="deleted"),
    ]
    for agent in (exporter, exporter_of()):
        for request in requests:
            if agent is exporter and request.id == "spool0-4":
                continue  # files go into the folder of a deleted run as well
            outcome = agent.export(request)
            assert isinstance(outcome, Retry), outcome
            assert "restore" in outcome.reason
    client.restore_experiment(experiment)
    for request in requests:
        assert exporter.export(request) == Accepted()
    assert [value for _, value, _ in history(client, run, "loss")] == [1.0, 2.0]
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_deleted_run_is_waited_for(make, exporter_of, client):
    exporter = exporter_of()
    assert exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}), project="deleted run")) == Accepted()
    run = the_run(client, "deleted run")
    client.delete_run(run.info.run_id)
    request = make.logged(2, make.rows({2: {"loss": 2.0}}), project="deleted run")
    for agent in (exporter, exporter_of()):
        outcome = agent.export(request)
        assert isinstance(outcome, Retry), outcome
        assert "mlflow runs restore" in outcome.reason
        assert run.info.run_id in outcome.reason
    client.restore_run(run.info.run_id)
    assert exporter_of().export(request) == Accepted()
    assert [value for _, value, _ in history(client, run, "loss")] == [1.0, 2.0]


def test_a_batch_that_is_refused_is_divided(make, exporter_of, client, monkeypatch):
    """MLflow refuses a whole batch for one of its items."""
    from tensormeter_exporters import mlflow

    monkeypatch.setattr(mlflow, "_clean", lambda name: name)  # as if MLflow's rules were others
    rows = {step: {"loss": step / 7, "a@b": 1.0, "acc": 0.5} for step in range(3)}
    outcome = exporter_of().export(make.logged(1, make.rows(rows), project="divided"))
    assert isinstance(outcome, Accepted)
    assert outcome.rejected == 3
    assert "a@b" in outcome.message
    run = the_run(client, "divided")
    assert [value for _, value, _ in history(client, run, "loss")] == [step / 7 for step in range(3)]
    assert len(history(client, run, "acc")) == 3
    assert exporter_of().export(make.logs(2, make.start({"lr": 1, "a@b": 2, "x": 3}), project="divided")).rejected == 1
    assert the_run(client, "divided").data.params == {"lr": "1", "x": "3"}


def test_a_batch_that_is_refused_throughout_is_set_aside_after_few_attempts(make, exporter_of, monkeypatch):
    from tensormeter_exporters import mlflow

    monkeypatch.setattr(mlflow, "_clean", lambda name: name)
    exporter = exporter_of()
    exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}), project="throughout"))
    batches = []
    log_batch = exporter._client.log_batch
    monkeypatch.setattr(
        exporter._client, "log_batch", lambda *given, **items: batches.append(1) or log_batch(*given, **items)
    )
    outcome = exporter.export(
        make.logged(2, make.rows({step: {"a@b": 1.0} for step in range(3000)}), project="throughout")
    )
    assert isinstance(outcome, Rejected), "so that it can be sent again"
    assert "a@b" in outcome.reason
    assert len(batches) < 200


def test_an_internal_error_costs_its_item_only_if_mlflow_works(make, exporter_of, client, monkeypatch):
    from mlflow.exceptions import MlflowException

    exporter = exporter_of()
    works = []
    log_batch, set_tag = exporter._client.log_batch, exporter._client.set_tag

    def fail(*given, metrics=(), **items):
        if any(metric.key == "bad" for metric in metrics):
            raise MlflowException("a database that cannot hold this")
        return log_batch(*given, metrics=metrics, **items)

    def tag(*given):
        if not works:
            raise MlflowException("a database that is gone")
        return set_tag(*given)

    monkeypatch.setattr(exporter._client, "log_batch", fail)
    monkeypatch.setattr(exporter._client, "set_tag", tag)
    request = make.logged(1, make.rows({1: {"loss": 1.0, "bad": 2.0}}), project="internal")
    for _ in range(10):
        assert isinstance(exporter.export(request), Retry)
    works.append(True)
    outcome = exporter.export(request)
    assert isinstance(outcome, Accepted)
    assert outcome.rejected == 1
    assert [value for _, value, _ in history(client, the_run(client, "internal"), "loss")] == [1.0]


@pytest.mark.parametrize(
    ("error", "is_temporary"),
    [
        (ValueError("texts/authentication-1.txt: not a valid name"), False),
        (RuntimeError("An error occurred (AccessDenied) when calling the PutObject operation"), True),
        (type("NoCredentialsError", (Exception,), {})("unable to locate them"), True),
        (ConnectionResetError("connection reset by peer"), True),
    ],
)
def test_an_artifact_is_refused_alone_unless_its_store_refuses_the_user(
    make, exporter_of, client, monkeypatch, error, is_temporary
):
    exporter = exporter_of()
    log_artifact = exporter._client.log_artifact

    def fail(run, file, folder):
        if "authentication" in file:
            raise error
        return log_artifact(run, file, folder)

    monkeypatch.setattr(exporter._client, "log_artifact", fail)
    texts = [Text(key, "hello").event(make.T0, 1) for key in ("authentication", "note")]
    project = f"artifact store {type(error).__name__}"
    if is_temporary:
        with pytest.raises(type(error)):  # the agent retries the request after an exception
            exporter.export(make.logs(1, *texts, project=project))
    else:
        outcome = exporter.export(make.logs(1, *texts, project=project))
        assert isinstance(outcome, Accepted)
        assert outcome.rejected == 1
        run = the_run(client, project).info.run_id
        assert [item.path for item in client.list_artifacts(run, "texts")] == ["texts/note-1.txt"]


def test_names_that_mlflow_cannot_tell_apart_stay_apart(make, exporter_of, client):
    rows = {step: {"mAP@50": 1.0, "mAP#50": 2.0, "mAP_50": 3.0, "n" * 249 + "/tail": 4.0} for step in range(3)}
    assert exporter_of().export(make.logged(1, make.rows(rows), project="apart")) == Accepted()
    config = {"a@b": 1, "a#b": 2, "a_b": 3, "lr": 0.1}
    assert exporter_of().export(make.logs(2, make.start(config), project="apart")) == Accepted()
    run = the_run(client, "apart")
    histories = {key: {value for _, value, _ in history(client, run, key)} for key in run.data.metrics}
    assert sorted(map(sorted, histories.values())) == [[1.0], [2.0], [3.0], [4.0]]
    assert histories["mAP_50"] == {3.0}
    assert sorted(run.data.params.values()) == ["0.1", "1", "2", "3"]
    assert (run.data.params["a_b"], run.data.params["lr"]) == ("3", "0.1")


def test_media_of_two_processes_do_not_replace_each_other(make, exporter_of, client):
    exporter = exporter_of()
    for number, process in enumerate(("aaaaaaaaaa", "bbbbbbbbbb")):
        text = Text("note", f"of {process}").event(make.T0, 1)
        assert exporter.export(make.logs(number, text, project="two", process=process)) == Accepted()
    run = the_run(client, "two").info.run_id
    paths = {item.path for folder in ("texts", "texts/process-bbbbbbbb") for item in client.list_artifacts(run, folder)}
    assert {"texts/note-1.txt", "texts/process-bbbbbbbb/note-1.txt"} <= paths


def test_two_texts_under_one_key_and_step_are_both_there(make, exporter_of, client):
    texts = [
        Text("note", word).event(make.T0 + number, step)
        for number, (word, step) in enumerate([("a", 1), ("b", 1), ("c", None), ("d", None)])
    ]
    exporter = exporter_of()
    for _ in range(2):  # and when the request comes again
        assert exporter.export(make.logs(1, *texts, project="same step")) == Accepted()
    run = the_run(client, "same step").info.run_id
    assert {item.path for item in client.list_artifacts(run, "texts")} == {
        "texts/note-1.txt", f"texts/note-1-{make.T0 + 1}.txt", f"texts/note-{make.T0 + 2}.txt", f"texts/note-{make.T0 + 3}.txt",
    }  # fmt: skip


def test_a_store_of_files_takes_what_it_can(make, client, tmp_path, monkeypatch):
    """A metric `a` is a file there, and `a/b` another one in a folder `a`: one of them is refused, and the rest arrives."""
    from mlflow import MlflowClient

    from tensormeter_exporters.mlflow import MlflowExporter

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    config = ExporterConfig(endpoint="", token=None, timeout=60.0, options={"tracking_uri": uri})
    exporter = MlflowExporter(config)
    outcome = exporter.export(make.logged(1, make.rows({1: {"loss": 1.0, "a": 2.0, "a/b": 3.0, "损" * 200: 4.0}})))
    assert isinstance(outcome, Accepted)
    assert outcome.rejected == 2
    assert the_run(MlflowClient(uri), "demo").data.metrics == {"loss": 1.0, "a": 2.0}
