"""Environments and commands of the processes that tests start."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ROOT", "TESTS", "clean_environment", "module_command", "run_python"]

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def clean_environment(*prefixes: str) -> dict[str, str]:
    """The environment without the user's own settings. The code of runs is not recorded.

    Args:
        prefixes: Starts of the names to leave out; by default those of Tensormeter and of OpenTelemetry.
    """
    left_out = prefixes or ("TENSORMETER_", "OTEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return kept | {"TENSORMETER_RECORD_CODE": "0", "TENSORMETER_QUIET": "1"}


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package as a program, in any folder and environment."""
    code = "import runpy, sys; sys.path[0] = sys.argv.pop(1); runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
    return [sys.executable, "-c", code, str(TESTS), f"support.{module}", *arguments]


def run_python(
    *arguments: object, environment: Mapping[str, str] | None = None, folder: Path | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python with some arguments, and wait for its end for up to 900 s.

    Args:
        arguments: The arguments of Python, such as `-c` and a program.
        environment: The whole environment; by default that of this process.
        folder: The working folder; by default that of this process.
        check: Whether an exit status other than 0 fails the test.
    """
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert not check or process.returncode == 0, process.stdout + process.stderr
    return process
