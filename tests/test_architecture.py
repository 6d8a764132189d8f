"""The house keeps its shape."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tensormeter
from support.processes import run_python
from tensormeter.conventions import semconv

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")])


def test_layers() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_public_names_are_sorted_and_real() -> None:
    names = tensormeter.__all__
    assert names == sorted(names, key=lambda name: (name[0].islower(), name))
    assert tensormeter.Client.__module__ == "tensormeter.client.client"  # loaded by its first use, so no variable
    public = {"Client"} | {
        name for name, value in vars(tensormeter).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert path.stem not in ("utils", "helpers", "common", "misc")


def test_importing_loads_no_heavy_library() -> None:
    """Training processes pay for what they import, and must not load torch unless they use it."""
    code = "import sys, tensormeter; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = run_python("-c", code, check=True).stdout.split()
    heavy = {"torch", "numpy", "pandas", "google", "sqlite3", "urllib3", "rich", "click", "starlette", "uvicorn"}
    assert heavy.isdisjoint(loaded)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_events_and_attributes_are_spelled_once(path: Path) -> None:
    if path.stem == "semconv":
        return
    tree = ast.parse(path.read_text())
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in docstrings]
    names = {getattr(semconv, name) for name in semconv.__all__}
    assert not [(node.lineno, node.value) for node in constants if isinstance(node.value, str) and node.value in names]


CHECKS = ("agrees", "assert_", "check_", "expect", "eventually", "run_python", "wait_for")
"""Starts of the names of helpers that fail where a promise is broken."""


def calls(node: ast.AST) -> Iterator[str]:
    """Names of all functions that are called in a tree, with those of the objects whose methods they are."""
    for call in ast.walk(node):
        function = call.func if isinstance(call, ast.Call) else None
        while isinstance(function, ast.Attribute):
            yield function.attr
            function = function.value
        if isinstance(function, ast.Name):
            yield function.id


def functions_of(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """The functions of a module and of its classes of tests. Other classes may have hooks such as `test_step`."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef):
            yield statement
        elif isinstance(statement, ast.ClassDef) and statement.name.startswith("Test"):
            yield from functions_of(statement.body)


def test_every_test_asserts_something() -> None:
    """With an `assert`, `pytest.raises`, or a helper that is named as one that checks."""
    without = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in functions_of(ast.parse(path.read_text()).body):
            if function.name.startswith("test_"):
                asserts = any(isinstance(node, ast.Assert) for node in ast.walk(function))
                names = list(calls(function))
                if not asserts and "raises" not in names and not any(name.startswith(CHECKS) for name in names):
                    without.append(f"{path.relative_to(ROOT)}::{function.name}")
    assert without == []
