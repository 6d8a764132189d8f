"""Layers of the page's sources: each folder imports only from folders below it."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

SOURCES = (Path(__file__).parents[2] / "ui" / "src").resolve()
IMPORT = re.compile(r'^import\b[^;]*?"(\.[^"]*)";|\bimport\("(\.[^"]*)"\)', re.MULTILINE)

LAYERS = [
    {"main"},
    {"shell"},
    {"pages"},
    {"panes"},
    {"logs", "selection", "table"},
    {"chart", "media", "widgets"},
    {"data"},
    {"base"},
]
"""From top to bottom. Folders of one layer do not import each other; `main` and `shell` are single files."""

MAX_FILES = 15


def imports() -> dict[Path, set[Path]]:
    return {
        path: {
            (path.parent / f"{static or dynamic}.ts").resolve() for static, dynamic in IMPORT.findall(path.read_text())
        }
        for path in SOURCES.rglob("*.ts")
    }


def folder(path: Path) -> str:
    return path.relative_to(SOURCES).with_suffix("").parts[0]


def test_modules_form_no_circles() -> None:
    graph = imports()
    assert {path for imported in graph.values() for path in imported} <= set(graph)
    TopologicalSorter(graph).prepare()


def test_folders_import_only_from_lower_layers() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert set(level) == {folder(path) for path in imports()}
    upwards = [
        f"{path.relative_to(SOURCES)} imports {other.relative_to(SOURCES)}"
        for path, imported in imports().items()
        for other in imported
        if folder(path) != folder(other) and level[folder(path)] >= level[folder(other)]
    ]
    assert upwards == []


def test_folders_stay_small() -> None:
    folders = [path for path in SOURCES.iterdir() if path.is_dir()]
    assert max(len(list(path.glob("*.ts"))) for path in folders) <= MAX_FILES
