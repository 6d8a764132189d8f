"""The examples of the README work."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from support.processes import run_python
from tensormeter.cli import tensormeter
from tensormeter.settings import describe_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example: str, tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "TENSORMETER_DIR": str(tmp_path / "runs"),
        "TENSORMETER_BUFFER_DIR": str(tmp_path / "rings"),
        "TENSORMETER_MODE": "offline",
    }
    done = run_python("-c", example, environment=environment, check=True)
    assert re.fullmatch(r"tensormeter show \w{8}\n" if example == EXAMPLES[0] else "", done.stdout)


def test_there_are_examples() -> None:
    assert len(EXAMPLES[0].strip().splitlines()) <= 10
    assert max(len(example.strip().splitlines()) for example in EXAMPLES) <= 15


def test_settings_table() -> None:
    rows = ["| setting | environment variable | default | description |", "|---|---|---|---|"]
    for name, variables, default, text in describe_settings():
        rows.append(f"| `{name}` | {', '.join(f'`{variable}`' for variable in variables)} | {default} | {text} |")
    shown = README.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert shown == "\n".join(rows)


def test_commands_exist() -> None:
    listed = CliRunner().invoke(tensormeter, ["--help"]).output.partition("Commands:\n")[2]
    commands = sorted(line.split()[0] for line in listed.splitlines())
    assert commands == sorted(re.findall(r"^\| `tensormeter (\w+)", README, re.MULTILINE))
    for command in commands:
        assert CliRunner().invoke(tensormeter, [command, "--help"]).exit_code == 0


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make (\w+)`", README))
    assert targets == {"bench", "check", "demo", "screenshots", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
