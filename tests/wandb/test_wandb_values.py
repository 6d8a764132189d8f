"""Tables, charts, images and other values that are not numbers, artifacts and watched models."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tensormeter.wandb as wandb
from tensormeter.client.run import StoredRun
from tensormeter.wandb import data_types

Stored = Callable[[str], StoredRun]


def table_of(stored: StoredRun, key: str) -> tuple[list[str], list[list[Any]]]:
    (table,) = stored.tables(key)
    return list(table.columns), [list(row) for row in table.rows]


def test_tables_are_recorded_as_they_were_filled(online: Stored, caplog: pytest.LogCaptureFixture) -> None:
    pandas = pytest.importorskip("pandas")
    rows = wandb.Table(columns=["text", "loss"], data=[["a", 0.5]], allow_mixed_types=True, log_mode="MUTABLE")
    rows.add_data("b", np.float32(1.5))
    rows.add_column("number", [1, 2])
    rows.add_computed_columns(lambda number, row: {"twice": 2 * row["number"]})
    with pytest.raises(ValueError, match="expected 4 cells"):
        rows.add_data(1)
    assert rows.get_column("loss") == [0.5, 1.5]
    assert rows.get_column("number", convert_to="numpy").tolist() == [1, 2]
    assert list(rows.iterrows())[1] == (1, ["b", 1.5, 2, 4])
    assert rows.get_dataframe()["twice"].tolist() == [2, 4]
    assert rows.get_index() == [0, 1]
    frame = pandas.DataFrame({"x": [1, 2], "y": ["p", "q"]})
    with wandb.init(id="tables"):
        wandb.log(
            {
                "rows": rows,
                "frame": wandb.Table(dataframe=frame, columns=["x"]),
                "mappings": wandb.Table(data=[{"a": 1}, {"b": 2, "a": 3}]),
                "ordered": wandb.Table(["b", "a"], [{"a": 1, "b": 2}]),
                "distribution": wandb.Table(["a", "b"], [[wandb.Histogram([1, 2]), 3]]),
                "array": wandb.Table(data=np.eye(2), columns=["a", "b"]),
            }
        )
        wandb.log({"plain": frame, "default": wandb.Table(data=[[1, 2, 3]]), "by rows": wandb.Table(["a"], rows=[[1]])})
    stored = online("tables")
    assert table_of(stored, "rows") == (["text", "loss", "number", "twice"], [["a", 0.5, 1, 2], ["b", 1.5, 2, 4]])
    assert table_of(stored, "frame") == (["x", "y"], [[1, "p"], [2, "q"]])
    assert table_of(stored, "mappings") == (["a", "b"], [[1, None], [3, 2]])
    assert table_of(stored, "ordered") == (["b", "a"], [[2, 1]])
    assert table_of(stored, "distribution") == (["a", "b"], [[None, 3]])
    assert "the Histogram in row 0 is not recorded" in caplog.text
    assert table_of(stored, "array") == (["a", "b"], [[1, 0], [0, 1]])
    assert table_of(stored, "plain") == (["x", "y"], [[1, "p"], [2, "q"]])
    assert table_of(stored, "default") == (["Input", "Output", "Expected"], [[1, 2, 3]])
    assert table_of(stored, "by rows") == (["a"], [[1]])


def test_charts_are_tables(online: Stored) -> None:
    sklearn = pytest.importorskip("sklearn")
    assert sklearn
    table = wandb.Table(columns=["x", "y", "kind"], data=[[1, 2, "a"], [2, 4, "b"]])
    truth, scores = [0, 1, 1, 0, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.1, 0.9]]
    charts = {
        "line": wandb.plot.line(table, "x", "y", stroke="kind", title="t"),
        "bar": wandb.plot.bar(table, "kind", "y"),
        "scatter": wandb.plot.scatter(table, x="x", y="y"),
        "histogram": wandb.plot.histogram(table, "y"),
        "series": wandb.plot.line_series(xs=[0, 1], ys=[[1, 2], [3, 4]], keys=["p", "q"], xname="step"),
        "matrix": wandb.plot.confusion_matrix(y_true=[0, 1, 1], preds=[0, 0, 1], class_names=["no", "yes"]),
        "probabilities": wandb.plot.confusion_matrix(y_true=truth, probs=scores),
        "pr": wandb.plot.pr_curve(truth, scores, labels=["no", "yes"], interp_size=3),
        "roc": wandb.plot.roc_curve(truth, scores, classes_to_plot=[1]),
        "known": wandb.plot_table("wandb/scatter/v0", table, {"x": "x", "y": "y"}),
        "custom": wandb.plot_table("team/own", table, {}),
    }
    with wandb.init(id="charts"):
        wandb.log(charts)
    stored = online("charts")
    bodies = {key: json.loads(chart.pack().body) for key, chart in charts.items()}
    assert bodies["line"]["chart"] == {"kind": "line", "x": "x", "y": "y", "series": "kind", "title": "t"}
    kinds = {key: body.get("chart", {}).get("kind") for key, body in bodies.items()}
    assert kinds == {
        "line": "line", "bar": "bar", "scatter": "scatter", "histogram": "histogram", "series": "line",
        "matrix": "confusion_matrix", "probabilities": "confusion_matrix", "pr": "pr_curve", "roc": "roc_curve",
        "known": "scatter", "custom": None,
    }  # fmt: skip
    assert table_of(stored, "series")[1] == [[0, "p", 1], [1, "p", 2], [0, "q", 3], [1, "q", 4]]
    assert table_of(stored, "matrix")[1] == [["no", "no", 1], ["no", "yes", 0], ["yes", "no", 1], ["yes", "yes", 1]]
    assert {row[0] for row in table_of(stored, "pr")[1]} == {"no", "yes"}
    assert all(0 <= x <= 1 and 0 <= y <= 1 for _, x, y in table_of(stored, "roc")[1])


def test_curves_are_those_of_wandb() -> None:
    real = pytest.importorskip("wandb.plot")
    truth = [0, 1, 1, 0, 1, 0]
    scores = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.4, 0.6]]
    for name, arguments in (
        ("pr_curve", (truth, scores)),
        ("roc_curve", (truth, scores)),
        ("confusion_matrix", (scores, truth)),
    ):
        theirs = getattr(real, name)(*arguments).table
        ours = getattr(wandb.plot, name)(*arguments)
        assert ours.columns == theirs.columns
        assert ours.data == [list(row) for row in theirs.data]


def test_long_curves_keep_the_ends_of_each_class() -> None:
    pytest.importorskip("sklearn")
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 30_000)
    first = random.random(30_000) * 0.6 + (truth == 0) * 0.4
    curve = wandb.plot.roc_curve(truth, np.stack([first, 1 - first], 1))
    assert 3_000 < len(curve.data) < 11_000
    for number in (0, 1):
        points = [row[1:] for row in curve.data if row[0] == number]
        assert (points[0], points[-1]) == ([0.0, 0.0], [1.0, 1.0])


def test_images_have_the_orders_of_wandb(online: Stored) -> None:
    image = pytest.importorskip("PIL.Image")
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.add_subplot().plot([1, 2])
    high = np.zeros((8, 16, 3), np.uint8)
    with wandb.init(id="images") as run:
        run.log(
            {
                "hwc": wandb.Image(high, caption="a caption", mode="RGB", grouping=1),
                "chw": wandb.Image(torch.zeros(3, 8, 16), file_type="jpg"),
                "squeezed": wandb.Image(np.zeros((1, 8, 16))),
                "pil": wandb.Image(image.fromarray(high), mode="L"),
                "figure": wandb.Image(figure),
                "again": wandb.Image(wandb.Image(high, caption="inner")),
                "list": [wandb.Image(high, caption=str(number)) for number in range(3)],
                "many": [wandb.Image(high[:2, :2])] * 300,
                "masked": wandb.Image(
                    high, masks={"m": {"mask_data": high[..., 0]}}, boxes={}, classes=wandb.Classes([])
                ),
                "plain": figure,
                "masks": {"true": wandb.Image(torch.zeros(8, 16))},
            }
        )
    stored = online("images")
    images = {each.key: each for each in stored.images()}
    assert len(stored.images("many")) == 256
    for key in ("hwc", "chw", "squeezed", "pil", "again", "masks.true"):
        assert image.open(io.BytesIO(images[key].read())).size == (16, 8), key
    assert (images["hwc"].caption, images["again"].caption) == ("a caption", "inner")
    assert {"figure", "masked", "plain"} <= images.keys()
    assert "list" in images


def test_clips_documents_and_distributions_are_recorded(online: Stored, place: Path) -> None:
    pytest.importorskip("PIL")
    frames = np.zeros((4, 3, 8, 16), np.uint8)
    (place / "page.html").write_text("<p>file</p>")
    with wandb.init(id="clips"):
        wandb.log(
            {
                "video": wandb.Video(frames, fps=4, caption="c", format="gif"),
                "videos": wandb.Video(np.stack([frames, frames]), fps=4),
                "audio": wandb.Audio(np.zeros(800, np.float32), sample_rate=8000, caption="c"),
                "html": wandb.Html("<h1>x</h1>", inject=False),
                "html file": wandb.Html("page.html"),
                "html open": wandb.Html(io.StringIO("<p>open</p>")),
                "html text": wandb.Html("page.html", data_is_not_path=True),
                "values": wandb.Histogram([1, 2, 3], num_bins=8),
                "tensors": wandb.Histogram([torch.tensor(1.0), torch.tensor(2.0)]),
                "counts": wandb.Histogram(np_histogram=np.histogram([1, 2, 3], bins=2)),
                "generator": wandb.Histogram(value for value in range(3)),
                "single": wandb.Histogram(3),
            }
        )
    stored = online("clips")
    assert {video.key for video in stored.videos()} == {"video", "videos"}
    assert [clip.key for clip in stored.audio()] == ["audio"]
    documents = {record.body["html"] for record in stored.html()}
    assert documents == {"<h1>x</h1>", "<p>file</p>", "<p>open</p>", "page.html"}
    kinds = {metric.name: metric.kind for metric in stored.metrics()}
    assert {"values", "tensors", "counts", "generator", "single"} <= kinds.keys()


def test_unsupported_items_are_counted_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    refused = {
        "several devices": [torch.zeros(3), torch.zeros(2, device="meta")],
        "no numbers": object(),
        "nothing": None,
    }
    with wandb.init() as run:
        for _ in range(2):
            run.log({"cloud": wandb.Object3D(np.zeros((4, 3))), "molecule": wandb.Molecule.from_smiles("C"), "a": 1})
        run.log({name: wandb.Histogram(value) for name, value in refused.items()})
    assert caplog.text.count("'cloud' is not recorded: a wandb.Object3D is not supported") == 1
    for name in ("molecule", *refused):
        assert caplog.text.count(f"'{name}' is not recorded") == 1


def test_plotly_figures_are_recorded(online: Stored) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    with wandb.init(id="plotly"):
        wandb.log({"wrapped": wandb.Plotly(graph_objects.Figure()), "plain": graph_objects.Figure()})
    assert {record.key for record in online("plotly").figures()} == {"wrapped", "plain"}


def test_artifacts_are_recorded_with_digests(online: Stored, place: Path) -> None:
    (place / "model.pt").write_bytes(b"weights")
    (place / "folder").mkdir()
    (place / "folder" / "a.txt").write_text("a")
    with wandb.init(id="artifacts") as run:
        artifact = wandb.Artifact("model", type="model")
        artifact.add_file("model.pt")
        assert wandb.log_artifact(artifact, aliases=["best"]).wait() is artifact
        several = wandb.Artifact("data", "dataset", metadata={"rows": 1})
        several.add_dir("folder").add_reference("s3://bucket/data.bin", name="remote")
        several.add(wandb.Table(columns=["a"], data=[[1]]), "preview")
        with several.new_file("notes.txt") as file:
            file.write("written")
        assert several.is_draft()
        run.log_artifact(several)
        several.link("registry")
        several.finalize()
        assert not several.is_draft()
        run.log_artifact("model.pt", name="by path", type="model", aliases="latest")
        run.log_model("model.pt", name="logged")
        saved = wandb.save("folder/*.txt")
        assert saved == [str(place / "folder" / "a.txt")]
        assert wandb.save() is True
        for refused in (artifact.download, run.use_artifact, wandb.use_artifact, run.restore):
            with pytest.raises(wandb.Error, match="not supported"):
                refused("x:latest")
    stored = online("artifacts")
    artifacts = {each.key: each for each in stored.artifacts()}
    assert set(artifacts) == {
        "model",
        "data/folder",
        "data/remote",
        "data/notes.txt",
        "by path",
        "logged",
        "folder/a.txt",
    }
    assert list(artifacts["model"].aliases) == ["best"]
    assert artifacts["model"].type == "model"
    assert table_of(stored, "data/preview") == (["a"], [[1]])


def test_new_files_stay_within_the_folder_of_the_run(caplog: pytest.LogCaptureFixture, place: Path) -> None:
    with wandb.init() as run:
        artifact = wandb.Artifact("../outside", "x")
        with artifact.new_file("../../../escaped.txt") as file:
            file.write("x")
        run.log_artifact(artifact)
        assert "is outside of" in caplog.text
    assert not list(place.rglob("escaped.txt"))


def test_models_are_watched_at_the_frequency_of_the_caller(online: Stored) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with wandb.init(id="watched") as run:
        wandb.watch(model, torch.nn.MSELoss(), log="all", log_freq=2, idx=0)
        for _ in range(4):
            model(torch.ones(3, 2)).sum().backward()
            optimizer.step()
            wandb.log({"loss": 1.0})
        wandb.unwatch(model)
        run.watch([model], log=None, log_graph=True)
    blocks = list(online("watched").points("gradient_norm"))
    steps = [step for block in blocks for step in block.step.tolist()]
    assert steps == [0, 2]
    assert all(math.isfinite(value) for block in blocks for value in block.value.tolist())


def test_tensors_are_not_read_when_they_are_logged() -> None:
    class Unreadable(torch.Tensor):
        pass

    with wandb.init() as run:
        value = torch.ones((), device="meta")
        run.log({"meta": value, "nested": {"a": value}})
        run.log({"loss": torch.tensor(2.0, requires_grad=True)})
        assert "loss" not in run.summary


def test_classes_are_items_of_tensormeter() -> None:
    import tensormeter

    for ours, core in (
        (wandb.Image, tensormeter.Image),
        (wandb.Video, tensormeter.Video),
        (wandb.Audio, tensormeter.Audio),
        (wandb.Html, tensormeter.Html),
        (wandb.Histogram, tensormeter.Histogram),
    ):
        assert issubclass(ours, core)
    assert data_types.Table is wandb.Table
    assert issubclass(wandb.Table, data_types.WBValue)


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda: wandb.sweep({}), "Optuna"),
        (lambda: wandb.agent("id", print), "Optuna"),
        (wandb.controller, "Optuna"),
        (wandb.Api, "tensormeter.Client"),
        (lambda: wandb.apis.public.Api(timeout=3), "tensormeter.Client"),
        (lambda: wandb.restore("model.h5"), "read the file"),
        (lambda: wandb.use_model("x"), "read the file"),
    ],
)
def test_refusals_name_the_way_on(call: Callable[[], Any], remedy: str) -> None:
    with pytest.raises(wandb.Error, match=remedy):
        call()


def test_names_that_code_touches_exist(caplog: pytest.LogCaptureFixture) -> None:
    from tensormeter.wandb.sdk.lib.runid import generate_id

    assert len(generate_id()) == 8
    assert wandb.util.generate_id() != wandb.util.generate_id()
    assert issubclass(wandb.errors.CommError, wandb.Error)
    assert wandb.CommError is wandb.errors.CommError
    assert wandb.wandb_sdk.wandb_run.Run is wandb.Run
    assert wandb.AlertLevel.WARN.value == "WARN"
    assert wandb.Settings(start_method="thread", _disable_stats=True).start_method == "thread"
    assert wandb.Settings().x_disable_stats is None
    wandb.require("core")
    wandb.ensure_configured()
    wandb.termlog("text")
    wandb.termwarn("careful")
    assert "careful" in caplog.text
    assert wandb.setup(wandb.Settings(project="from setup")).settings.project == "from setup"
    run = wandb.init()
    assert run.project == "from setup"
    assert run.status().sync_items_pending == 0
    assert run.get_project_url() is None
    assert wandb.run.sweep_id is None
    wandb.teardown()
    assert run.finished
    with pytest.raises(AttributeError, match=r"tensormeter\.integrations\.keras"):
        _ = wandb.keras
    with pytest.raises(AttributeError, match=r"docs/from-wandb\.md"):
        _ = wandb.no_such_name
    assert not hasattr(wandb, "__wrapped__")
    assert {"run", "config", "log"} <= set(dir(wandb))
