"""The Dockerfile keeps hadolint's rules that apply to it; hadolint's numbers stand next to them."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    (match[1], re.sub(r"\\\n", " ", match[2]).strip())
    for match in re.finditer(
        r"^([A-Z]+) ((?:.*\\\n)*.*)$", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE), re.MULTILINE
    )
]
STAGES = [(words[0], words[2]) for name, value in INSTRUCTIONS if name == "FROM" for words in [value.split()]]
FINAL = ("server", "trainer")


def stage(wanted):
    """A stage's instructions, those of the stages that it begins with first."""
    base = {name: base for base, name in STAGES}[wanted]
    inherited = stage(base) if base in [name for _, name in STAGES] else []
    current = None
    for name, value in INSTRUCTIONS:
        if name == "FROM":
            current = value.split()[2]
        elif current == wanted:
            inherited = [*inherited, (name, value)]
    return inherited


def test_every_instruction_is_known_to_these_tests():
    assert {name for _, name in STAGES} == {"base", "build", "build-server", "build-trainer", "trainer", "server"}
    assert {name for name, _ in INSTRUCTIONS} <= {
        "FROM",
        "ENV",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "ENTRYPOINT",
        "CMD",
        "VOLUME",
        "EXPOSE",
    }  # DL3020: no ADD; DL4000: no MAINTAINER; nothing secret in an ARG


def test_bases_are_pinned():
    """DL3006, DL3007."""
    for base, _ in STAGES:
        assert base in [name for _, name in STAGES] or re.fullmatch(r"\w+:\d+\.\d+\.\d+-[\w-]+", base)


@pytest.mark.parametrize("name", FINAL)
def test_an_image_does_not_run_as_root_and_its_command_is_no_shell(name):
    """DL3002, DL3025, DL4006."""
    instructions = stage(name)
    users = [value for instruction, value in instructions if instruction == "USER"]
    assert users
    assert users[-1].isdecimal()  # a number, so that Kubernetes can tell that it is not root
    assert int(users[-1]) > 0
    for instruction in ("ENTRYPOINT", "CMD"):
        (value,) = (value for keyword, value in instructions if keyword == instruction)
        assert isinstance(json.loads(value), list)
    assert not any("apt-get" in value or " pip " in value for _, value in instructions), "tools stay in build stages"


def test_instructions_leave_no_caches_behind():
    """DL3004, DL3009, DL3013, DL3014, DL3015, DL3042."""
    for name, value in INSTRUCTIONS:
        if name != "RUN":
            continue
        assert "sudo" not in value
        assert "| " not in value  # DL4006: a pipe hides what fails before it
        if "pip install" in value:
            assert "--no-cache-dir" in value
        if "apt-get install" in value:
            assert "--no-install-recommends" in value
            assert "--yes" in value
            assert value.endswith("rm -rf /var/lib/apt/lists/*")


def test_folders_and_sources_exist():
    """DL3000, DL3022, DL3045; and what is copied is let through by .dockerignore."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    for name, value in INSTRUCTIONS:
        if name == "WORKDIR":
            assert value.startswith("/")
        if name != "COPY":
            continue
        if value.startswith("--from="):
            assert value.split()[0].removeprefix("--from=") in [name for _, name in STAGES]
            continue
        *sources, _ = value.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, pattern) for pattern in allowed), source


def test_images_contain_no_secrets():
    for name, value in INSTRUCTIONS:
        if name == "ENV":
            assert not re.search(r"TOKEN|PASSWORD|SECRET", value)
