"""How the page's modules import each other."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "ui" / "src"
IMPORT = re.compile(r'^import\b[^;]*?"(\.[^"]*)";', re.MULTILINE)


def test_no_circles() -> None:
    graph = {
        path: {(path.parent / f"{name}.ts").resolve() for name in IMPORT.findall(path.read_text())}
        for path in SOURCES.resolve().rglob("*.ts")
    }
    assert {path for imported in graph.values() for path in imported} <= set(graph)
    TopologicalSorter(graph).prepare()
