"""The pages about importing: their examples run, and their tables name what exists."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import tensormeter
from support.documents import examples
from support.processes import ROOT
from tensormeter.cli.import_ import import_
from tensormeter.importers.registry import KINDS
from tensormeter.session import open_runs


@pytest.mark.parametrize("page", ["from-mlflow.md", "from-neptune.md"])
def test_examples_run(page, tmp_path, monkeypatch, caplog):
    variables = {"DIR": "state", "BUFFER_DIR": "rings", "AGENT": "thread", "MODE": "offline", "QUIET": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"TENSORMETER_{name}", str(tmp_path / value) if "DIR" in name else value)
    (tmp_path / "rings").mkdir()
    monkeypatch.chdir(tmp_path)
    Path("model.pt").write_bytes(b"weights")
    namespace = {}
    try:
        for example in examples(page):
            exec(compile(example, page, "exec"), namespace)
        assert tensormeter.run is None
        assert namespace["run"].finished
    finally:
        for run in open_runs.all_open():
            run.finish(timeout=0)
    assert [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.parametrize("page", ["from-mlflow.md", "from-neptune.md"])
def test_the_changed_lines_of_a_page_are_its_first_example(page):
    (diff,) = examples(page, "diff")
    after = [line[1:] for line in diff.splitlines() if not line.startswith("-") and line.strip("+ ")]
    example = [line for line in examples(page)[0].splitlines() if line]
    assert [line.strip() for line in after] == [
        line.strip() for line in example if not line.startswith(("def loss", "    return 1"))
    ]


def test_the_options_of_the_command_are_listed():
    page = Path(ROOT, "docs", "importing.md").read_text()
    text = CliRunner().invoke(import_, ["--help"]).output
    for option in set(re.findall(r"--[a-z-]+", text)) - {"--help"}:
        assert option in page
    for kind in KINDS:
        assert f"`{kind}`" in page
