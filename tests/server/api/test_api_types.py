"""The page's types of the API's documents are those that the server describes."""

from pathlib import Path

from support.processes import run_python

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())


def test_the_types_are_current():
    run_python(ROOT / "ui" / "types" / "generate.py", "--check", check=True)
