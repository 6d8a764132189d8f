"""Environments and commands of the processes that tests start."""

import os
import sys
from pathlib import Path

__all__ = ["ROOT", "TESTS", "clean_environment", "module_command"]

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def clean_environment(*prefixes: str) -> dict[str, str]:
    """The environment without the user's own settings.

    Args:
        prefixes: Starts of the names to leave out; by default those of Tensormeter and of OpenTelemetry.
    """
    left_out = prefixes or ("TENSORMETER_", "OTEL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package as a program, in any folder and environment."""
    code = "import runpy, sys; sys.path[0] = sys.argv.pop(1); runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
    return [sys.executable, "-c", code, str(TESTS), f"support.{module}", *arguments]
