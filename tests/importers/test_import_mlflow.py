"""MLflow's databases and folders, which MLflow itself has written, and what the server exports after their import."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from support.imported_runs import exported_points, import_all, only_run, read_all, stored_counts
from support.processes import clean_environment, run_python
from support.servers import Server
from tensormeter.importers.mlflow.local_artifacts import local_folder
from tensormeter.importers.mlflow.store import Lineage, Relation, TrackedRun
from tensormeter.importers.mlflow.texts import parse_text
from tensormeter.importers.registry import Options, SourceError, find_sources

SAMPLE = Path(__file__).with_name("mlflow_sample.py")
INFINITE = {float.hex(1.7976931348623157e308): "inf", float.hex(-1.7976931348623157e308): "-inf"}
"""Values that MLflow's databases contain instead of infinities."""


def points_of(run, folder):
    """The points of an exported run as in the truth: step, time in milliseconds, and bits."""
    exported = exported_points(run, folder)
    return {
        name: sorted([step, time // 1_000_000, value] for step, time, value in points)
        for name, points in exported.items()
    }


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A database and a folder, each with the truth in its folder, which one process of MLflow makes."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("mlflow.db", "mlruns")}
    uris = {"mlflow.db": f"sqlite:///{folders['mlflow.db']}/mlflow.db", "mlruns": f"file://{folders['mlruns']}/mlruns"}
    arguments = [argument for name, folder in folders.items() for argument in (uris[name], folder / "truth.json")]
    variables = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = clean_environment() | variables
    run_python(SAMPLE, *arguments, folder=folders["mlflow.db"], environment=environment, check=True)
    return folders


@pytest.fixture(scope="module", params=["mlflow.db", "mlruns"])
def source(request, samples):
    """Path of a store, and what MLflow's client reads from it."""
    folder = samples[request.param]
    return folder / request.param, json.loads((folder / "truth.json").read_text())


@pytest.fixture(scope="module")
def project(source, url):
    """Project with the imported runs of a store."""
    path, truth = source
    before = files_below(path.parent)
    tally = import_all(url, path, project=path.name)
    assert files_below(path.parent) == before  # neither a log of the database nor anything else
    assert tally.faults == []
    assert tally.runs == len(truth) == 4
    assert dict(tally.left_out) == {
        "deleted runs": 1,
        "datasets": 1,
        "contents of artifacts, which are recorded by their place": 1,
        "models, which are recorded by their place": 1,
    }
    return path.name


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_points_are_exported_with_their_steps_times_and_bits(project, source, url, tmp_path):
    for run_id, known in source[1].items():
        expected = {
            name: sorted([step, time, INFINITE.get(value, value)] for step, time, value in points)
            for name, points in known["metrics"].items()
        }
        run = only_run(url, project, known["name"])
        assert run.id == run_id
        assert points_of(run, tmp_path) == expected
    assert sum(len(points) for run in source[1].values() for points in run["metrics"].values()) == 130


def test_parameters_tags_notes_and_groups_are_kept(project, url):
    parent, child, killed, vanished = (
        only_run(url, project, name) for name in ("parent", "child", "killed", "vanished")
    )
    parameters = {"lr": 0.001, "layers": 3, "name": "x", "flag": True, "none": None, "betas": [0.9, 0.99]}
    parameters |= {"version": "1.10", "model/width": 64}
    assert parent.config == parameters | {"tags": {"release": 1.2}}
    assert (parent.tags, parent.notes, parent.group, parent.state) == (["keep"], "some notes", "parent", "finished")
    assert (child.group, child.config["tags"]["mlflow.parentRunId"]) == ("parent", parent.id)
    assert (killed.state, vanished.state, killed.group) == ("preempted", "crashed", "")
    code = parent.code
    assert code.commit == "a" * 40
    assert parent.processes()[0].resource["process.owner"]
    (system,) = parent.metrics(prefix="system/")
    assert system.unit == "%"


def test_artifacts_become_media_and_records(project, url):
    parent = only_run(url, project, "parent")
    dated, static = sorted(parent.images(), key=lambda image: image.key)
    assert (dated.key, dated.step, static.key, static.step) == ("dogs/a", 3, "static/img.png", None)
    assert dated.content_type == "image/png"
    assert len(dated.read()) > 50
    tables = {table.key: (table.columns, table.rows) for table in parent.tables()}
    assert tables["tables/t.json"] == (["a", "b"], [[1, "x"], [2, "y"]])
    assert tables["rows.csv"] == (["x", "y"], [[1, 0.5], [2, "NaN"]])
    columns, ((text, picture),) = tables["pictures.json"]
    assert (columns, text, picture["content_type"]) == (["q", "image"], "d", "image/png")
    assert {text.key: text.text for text in parent.texts()} == {"texts/a.txt": "hello", "d.json": '{\n  "a": 1\n}'}
    assert [page.key for page in parent.html()] == ["page.html"]
    (figure,) = parent.figures()
    assert json.loads(figure.body["figure"])["data"][0]["type"] == "scatter"
    records = {artifact.key: artifact for artifact in parent.artifacts()}
    assert set(records) == {"checkpoints/weights.bin", "my_model"}
    assert records["checkpoints/weights.bin"].size == 1000
    assert records["checkpoints/weights.bin"].place.endswith("/artifacts/checkpoints/weights.bin")
    assert (records["my_model"].type, records["my_model"].files) == ("model", 1)


def test_importing_again_changes_nothing(project, source, url):
    before = stored_counts(url, project)
    import_all(url, source[0], project=project)
    assert stored_counts(url, project) == before


def test_a_folder_of_artifacts_refers_to_its_database(tmp_path):
    (tmp_path / "mlruns" / "1" / "artifacts").mkdir(parents=True)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        for table in ("experiments", "runs", "metrics", "params", "tags"):
            connection.execute(f"CREATE TABLE {table} (a)")
    with pytest.raises(SourceError, match="contains only artifacts; import"):
        find_sources(str(tmp_path / "mlruns"), "auto", Options())


def test_damaged_points_and_runs_are_skipped_and_counted(source, tmp_path):
    path = tmp_path / source[0].name
    if source[0].is_dir():
        shutil.copytree(source[0], path)
        (metric,) = path.glob("*/*/metrics/train/loss")
        metric.write_bytes(b"garbage\n1 x 2\n" + metric.read_bytes() + b"\n99999999999999999999 1 1\n5")
        broken = next(meta for meta in path.glob("*/*/meta.yaml") if "run_name: killed" in meta.read_text())
        broken.write_text("a: [")
        tally = read_all(path)
        assert tally.left_out["damaged points"] == 4
        assert tally.left_out["damaged runs or experiments"] == 1
        assert tally.runs == 3
        assert [str(broken) in fault for fault in tally.faults] == [True]
    else:
        shutil.copy(source[0], path)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE metrics SET step = 'x' WHERE key = 'train/loss' AND step = 3")
            connection.execute("UPDATE runs SET start_time = 'yesterday' WHERE name = 'killed'")
        tally = read_all(path)
        assert tally.left_out["damaged points"] == 1
        assert tally.left_out["damaged runs"] == 1
        assert tally.runs == 3
        assert len(tally.faults) == 1
    assert tally.points == (130 if source[0].is_dir() else 129)


def test_links_out_of_the_folder_are_not_followed(samples, tmp_path):
    secret = tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    (secret / "key.txt").write_text("secret")
    (secret / "inner" / "lr").write_text("secret")
    path = tmp_path / "mlruns"
    shutil.copytree(samples["mlruns"] / "mlruns", path)
    (run,) = {metric.parents[2] for metric in path.glob("*/*/metrics/train/loss")}
    (run / "artifacts" / "link.txt").symlink_to(secret / "key.txt")
    shutil.rmtree(run / "params")
    (run / "params").symlink_to(secret / "inner")
    sent = []
    tally = read_all(path, sent)
    assert not any(b"secret" in body for body in sent)
    assert any("leads out of" in fault for fault in tally.faults)


def test_artifacts_behind_a_link_are_not_read_and_cost_no_other_run(samples, tmp_path):
    secret = tmp_path / "secret" / "artifacts"
    secret.mkdir(parents=True)
    (secret / "key.txt").write_text("secret")
    for name in ("mlruns", "mlflow.db"):
        path = tmp_path / name
        shutil.copytree(samples[name], path)
        for artifacts in [folder for folder in path.rglob("artifacts") if folder.is_dir()]:
            shutil.rmtree(artifacts)
            artifacts.symlink_to(secret)
        whole, sent = read_all(samples[name]), []
        tally = read_all(path, sent)
        assert not any(b"secret" in body for body in sent)
        assert (tally.runs, tally.points) == (whole.runs, whole.points)


def test_aliases_in_descriptions_are_not_written_out(samples, tmp_path):
    """Each level has ten times as many elements as the one below, but YAML shares them."""
    path = tmp_path / "mlruns"
    shutil.copytree(samples["mlruns"] / "mlruns", path)
    levels = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (run,) = {metric.parents[2] for metric in path.glob("*/*/metrics/train/loss")}
    for folder, key in ((run, "run_name"), (run.parent, "name")):
        kept = [
            line
            for line in (folder / "meta.yaml").read_text().splitlines()
            if not line.startswith((f"{key}:", "artifact_uri", "status"))
        ]
        lines = [*kept, *levels, f"{key}: *a11", "artifact_uri: *a11", "status: *a11"]
        (folder / "meta.yaml").write_text("\n".join(lines))
    assert read_all(path).runs == read_all(samples["mlruns"]).runs


@pytest.mark.parametrize(
    "table",
    ["CREATE TABLE metrics (key, value AS (zeroblob(60000000)))", "CREATE VIRTUAL TABLE metrics USING fts5(key)"],
)
def test_tables_that_compute_their_contents_are_not_read(samples, tmp_path, table):
    path = tmp_path / "mlflow.db"
    shutil.copy(samples["mlflow.db"] / "mlflow.db", path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE metrics")
        connection.execute(table)
    with pytest.raises(SourceError, match="found no runs"):
        read_all(path)


def test_a_truncated_database_is_reported(samples, tmp_path):
    path = tmp_path / "mlflow.db"
    data = (samples["mlflow.db"] / "mlflow.db").read_bytes()
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(SourceError, match=r"malformed|found no runs"):
        read_all(path)


def test_addresses_of_databases_and_folders_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        find_sources("sqlite:///missing.db", "auto", Options())
    with pytest.raises(SourceError, match=r"postgresql://\*\*\*@host/db: .* `mlflow server"):
        find_sources("postgresql://user:secret@host/db", "auto", Options())


def test_found_stores_have_the_same_kind_by_path_and_by_address(source):
    path = source[0]
    uri = f"file://{path}" if path.is_dir() else f"sqlite:///{path}"
    for address in (str(path), uri, str(path.parent)):
        kind, (found,) = find_sources(address, "auto", Options())
        assert (kind, Path(found.label)) == ("mlflow", path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-3", -3), ("007", "007"), ("+3", "+3"), ("1_000", "1_000"), (str(1 << 63), str(1 << 63)),
        ("0.001", 0.001), ("1e-05", 1e-05), ("1.10", "1.10"), ("inf", float("inf")), ("True", True), ("null", None),
        ("[1, null]", [1, None]), ("(0.9, 0.999)", [0.9, 0.999]), ("{'a': ['b']}", {"a": ["b"]}), ("{'a', 'b'}", "{'a', 'b'}"),
        ("[" * 3000, "[" * 3000), ("[" * 2000 + "]" * 2000, "[" * 2000 + "]" * 2000), ("[x]", "[x]"), ("", ""),
    ],
)  # fmt: skip
def test_texts_become_the_values_that_they_were_made_from(text, value):
    assert parse_text(text) == value
    assert type(parse_text(text)) is type(value)


def test_nested_runs_form_one_group_even_if_their_parents_form_a_circle():
    relations = [
        Relation("a", "sweep", ""),
        Relation("b", "trial", "a"),
        Relation("c", "fold", "b"),
        Relation("d", "alone", "gone"),
    ]
    lineage = Lineage(relations)
    assert [lineage.group_of(run) for run in "abcdx"] == ["sweep", "sweep", "sweep", "", ""]
    assert Lineage([Relation("a", "x", "b"), Relation("b", "y", "a")]).group_of("a") in ("", "x", "y")
    twins = Lineage(
        [Relation(run, "sweep", parent) for run, parent in (("a1", ""), ("a2", ""), ("b1", "a1"), ("b2", "a2"))]
    )
    assert {twins.group_of("b1"), twins.group_of("b2")} == {"sweep (a1)", "sweep (a2)"}


@pytest.mark.parametrize("uri", ["file:///etc", "/etc", "file:///x/../etc/artifacts", "s3://bucket/1/ID/artifacts", ""])
def test_a_database_cannot_choose_the_folder_of_artifacts(uri, tmp_path):
    run = TrackedRun("ID", "", "", "FINISHED", 1, 1, {}, {}, uri)
    assert local_folder(run, tmp_path) is None
