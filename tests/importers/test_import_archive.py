"""Archives: what `tensormeter export --project` writes, and a server that `tensormeter import` fills from it."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from support.archived_runs import PROJECT, answers_of, fill
from support.documents import examples
from support.processes import clean_environment
from support.servers import Server
from tensormeter.client import Client, Connection
from tensormeter.client.archive import ExportSummary, export_archive
from tensormeter.errors import UsageError
from tensormeter.importers.registry import ImportContext, Options, SourceError, find_sources
from tensormeter.importers.sender import ServerSender
from tensormeter.importers.tally import Tally
from tensormeter.settings import Settings

Cli = Callable[..., subprocess.CompletedProcess[str]]


class Silence:
    """A receiver of an export's progress that shows nothing."""

    def begin(self, runs: int, points: int) -> None: ...

    def points(self, count: int) -> None: ...

    def run(self, name: str) -> None: ...


def write(server: Server, folder: Path, project: str = PROJECT, *, force: bool = False) -> ExportSummary:
    """Export a project in this process."""
    return export_archive(Connection(server.url), [project], folder, Silence(), force=force)


def load(server: Server, archive: Path) -> Tally:
    """Import an archive in this process, and return what was counted."""
    tally = Tally()
    sender = ServerSender(Settings(endpoint=server.url), tally)
    try:
        _, sources = find_sources(str(archive), "auto", Options())
        for source in sources:
            source.send(ImportContext(sender, tally, api=Connection(server.url)))
        sender.flush()
    finally:
        sender.close()
    return tally


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archive")


@pytest.fixture(scope="module")
def cli(folder: Path) -> Cli:
    def cli(server: Server, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = clean_environment("TENSORMETER_") | {"TENSORMETER_ENDPOINT": server.url, "COLUMNS": "200"}
        command = [sys.executable, "-m", "tensormeter", *map(str, arguments)]
        return subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )

    return cli


@pytest.fixture(scope="module")
def quiet(folder: Path) -> list[str]:
    """Options of a server on which runs in progress neither stall nor raise alerts, because the times would differ."""
    rules = folder / "alerts.toml"
    rules.write_text("defaults = false\n")
    return ["--alerts", str(rules), "--stall-after", "1000000"]


@pytest.fixture(scope="module")
def source(folder: Path, quiet: list[str]) -> Iterator[Server]:
    server = Server(folder / "source", *quiet)
    try:
        fill(server, folder)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def archive(source: Server, folder: Path, cli: Cli) -> Path:
    done = cli(source, "export", "--project", PROJECT, "-o", folder / "first")
    assert done.returncode == 0, done.stderr
    assert "fork: not finished; the archive has what the server had received so far" in done.stdout
    return folder / "first"


@pytest.fixture(scope="module")
def target(archive: Path, folder: Path, quiet: list[str], cli: Cli) -> Iterator[Server]:
    server = Server(folder / "target", *quiet)
    try:
        done = cli(server, "import", archive)
        assert done.returncode == 0, done.stdout + done.stderr
        yield server
    finally:
        server.stop()


def tables_of(archive: Path) -> dict[str, Any]:
    return {
        path.relative_to(archive).as_posix(): repr(pq.read_table(path).to_pydict())
        for path in sorted(archive.rglob("*.parquet"))
    }


def test_an_empty_server_gives_the_same_answers_after_an_import(source: Server, target: Server) -> None:
    expected, answers = answers_of(source), answers_of(target)
    assert answers.keys() == expected.keys()
    for name, answer in expected.items():
        assert answers[name] == answer, name
    events = [*expected["all events"]["events"], *expected["fork events"]["events"]]
    names = {event["name"].removeprefix("tensormeter.") for event in events}
    assert names >= {
        "run.start", "run.config", "run.code", "run.end", "alert", "artifact", "image", "images", "table", "text",
        "video", "audio", "html", "figure",
    }  # fmt: skip
    assert len([name for name in expected if name.startswith("all media")]) >= 5


def test_export_of_the_import_is_the_same_archive(archive: Path, target: Server, folder: Path) -> None:
    write(target, folder / "second")
    assert tables_of(folder / "second") == tables_of(archive)
    media = {path.name: path.read_bytes() for path in (archive / "media").iterdir()}
    assert {path.name: path.read_bytes() for path in (folder / "second" / "media").iterdir()} == media


@pytest.mark.parametrize("server", ["source", "target"])
def test_import_changes_nothing_on_a_server_that_has_the_runs(
    server: str, archive: Path, request: pytest.FixtureRequest
) -> None:
    target: Server = request.getfixturevalue(server)
    Client(target.url).run("all", PROJECT).update(notes="edited since")
    before = answers_of(target)
    assert load(target, archive).faults == []
    assert answers_of(target) == before
    Client(target.url).run("all", PROJECT).update(notes="edited notes")


def test_checksums_are_those_of_sha256sum(archive: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"],
        cwd=archive, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"")


def test_existing_folders_are_replaced_only_if_asked(archive: Path, source: Server, tmp_path: Path) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("irreplaceable")
    for path, force in ((archive, False), (other, False), (other, True)):
        with pytest.raises(UsageError, match="exists"):
            write(source, path, force=force)
    assert (other / "thesis.txt").read_text() == "irreplaceable"
    copy = tmp_path / "copy"
    shutil.copytree(archive, copy)
    (copy / "old").touch()
    write(source, copy, force=True)
    assert tables_of(copy) == tables_of(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "mine"]
    assert not (copy / "old").exists()
    with pytest.raises(UsageError, match="no runs in project 'unknown'"):
        write(source, tmp_path / "unknown", "unknown")


def test_options_of_single_runs_and_of_archives_exclude_each_other(source: Server, cli: Cli) -> None:
    done = cli(source, "export", "--project", PROJECT, "--format", "csv")
    assert (done.returncode, done.stderr) == (
        1, "tensormeter: --format: only for exports of a single RUN; an archive contains everything as Parquet\n"
    )  # fmt: skip


def test_interrupted_export_continues(archive: Path, source: Server, tmp_path: Path) -> None:
    began: list[str] = []

    class Interruption(Silence):
        def run(self, name: str) -> None:
            began.append(name)
            if len(began) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_archive(Connection(source.url), [PROJECT], tmp_path / "again", Interruption())
    assert not (tmp_path / "again").exists()
    with (tmp_path / "again.partial" / "progress.jsonl").open("a") as file:
        file.write('{"document": {"id')  # cut by a power failure
    (tmp_path / "again.partial" / "media" / ".image.png.part").write_bytes(b"")
    assert write(source, tmp_path / "again").resumed == 2
    assert tables_of(tmp_path / "again") == tables_of(archive)
    assert not [*(tmp_path / "again" / "media").glob(".*")]
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_damage_is_reported_and_the_rest_imported(
    archive: Path, quiet: list[str], source: Server, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(archive, damaged)
    points = damaged / "points" / "all.parquet"
    data = bytearray(points.read_bytes())
    data[len(data) // 2] ^= 1
    points.write_bytes(data)
    picture = next(iter(sorted((damaged / "media").glob("*.png"))))
    picture.write_bytes(b"\x89PNG\r\n\x1a\nother")
    server = Server(tmp_path / "partly", *quiet)
    try:
        faults = " ".join(load(server, damaged).faults)
        assert "points/all.parquet: the file is damaged" in faults
        assert f"{picture.name}: the file is damaged" in faults
        run = server.get("/api/v1/runs/all", project=PROJECT)
        assert (run["name"], run["state"], run["points"]) == ("edited name", "failed", 1)  # the distribution
        assert server.get("/api/v1/runs/fork", project=PROJECT)["points"] == 10
        load(server, archive)  # a complete copy
        assert answers_of(server) == answers_of(source)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("manifest.json", '{"format": "tensormeter-archive", "version": 2}', "upgrade tensormeter"),
        ("manifest.json", "{", "manifest.json is missing or damaged"),
        ("SHA256SUMS", "x", "the file is damaged"),
        ("runs.parquet", "PAR1", "the file is damaged"),
    ],
)
def test_archives_that_cannot_be_read_are_refused(
    name: str, text: str, message: str, archive: Path, tmp_path: Path
) -> None:
    shutil.copytree(archive, tmp_path / "a")
    (tmp_path / "a" / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        find_sources(str(tmp_path / "a"), "auto", Options())


def replace_column(archive: Path, path: str, name: str, values: list[Any]) -> None:
    """Replace a column of a table, and its checksum."""
    table = pq.read_table(archive / path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, pa.array(values)), archive / path)
    digest = hashlib.sha256((archive / path).read_bytes()).hexdigest()
    sums = (archive / "SHA256SUMS").read_text().splitlines()
    changed = [f"{digest}  {path}" if line.endswith(f"  {path}") else line for line in sums]
    (archive / "SHA256SUMS").write_text("\n".join(changed) + "\n")


def test_file_names_cannot_leave_the_archive(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a"
    shutil.copytree(archive, copy)
    files = pq.read_table(copy / "runs.parquet")["file"].to_pylist()
    replace_column(copy, "runs.parquet", "file", [f"../{name}" for name in files])
    with pytest.raises(SourceError, match="is not the name of a run's files"):
        find_sources(str(copy), "auto", Options())


def test_hostile_rows_are_reported_and_the_rest_imported(archive: Path, target: Server, tmp_path: Path) -> None:
    copy = tmp_path / "a"
    shutil.copytree(archive, copy)
    bodies = pq.read_table(copy / "events/all.parquet")["body"].to_pylist()
    replace_column(copy, "events/all.parquet", "body", ["[" * 100_000, "[" * 900 + "]" * 900, "{", *bodies[3:]])
    processes = pq.read_table(copy / "logs/all.parquet")["process"].to_pylist()
    replace_column(copy, "logs/all.parquet", "process", ["nobody's", *processes[1:]])
    names = pq.read_table(copy / "points/fork.parquet")["kind"].to_pylist()
    replace_column(copy, "points/fork.parquet", "kind", ["other", *names[1:]])
    before = answers_of(target)
    faults = load(target, copy).faults
    assert [fault.partition(": ")[0] for fault in faults] == ["run all"] * 4 + ["run fork"], faults
    assert "unknown process" in faults[3]
    after = answers_of(target)
    assert {name for name in before if after[name] != before[name]} <= {"all events"}


def test_examples_of_the_page_read_an_archive(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "digits.archive"
    shutil.copytree(archive, copy)
    table = pq.read_table(copy / "runs.parquet")
    pq.write_table(table.filter(pc.equal(table["id"], "all")), copy / "runs.parquet")
    monkeypatch.chdir(tmp_path)
    for example in examples("archive.md"):
        exec(compile(example, "archive.md", "exec"), {})
    output = capsys.readouterr().out
    assert "edited name" in output
    assert "nested.list" in output
    assert "one 60.0 digits.archive/media" in output


def test_both_stores_give_the_same_answers(
    archive: Path, clickhouse: int, quiet: list[str], source: Server, folder: Path
) -> None:
    store = f"clickhouse://127.0.0.1:{clickhouse}/archive"
    server = Server(folder / "clickhouse", "--store", store, *quiet)
    try:
        assert load(server, archive).faults == []
        few = ("train/loss", "weights", "load")
        assert answers_of(server, metrics=few) == answers_of(source, metrics=few)
        write(server, folder / "third")
        assert tables_of(folder / "third") == tables_of(archive)
    finally:
        server.stop()
