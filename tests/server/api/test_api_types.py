"""The page's types of the API's documents are those that the server describes."""

import subprocess
import sys
from pathlib import Path

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())


def test_the_types_are_current():
    command = [sys.executable, ROOT / "ui" / "types" / "generate.py", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert checked.returncode == 0, checked.stderr
