"""Programs of others that tests run, where a machine has them."""

import os
import shutil

import pytest

__all__ = ["needs", "program"]

_COMMANDS = {"OTELCOL": ("otelcol-contrib", "otelcol")}


def program(variable: str) -> str | None:
    """The program that an environment variable names, else one that is installed; None if there is none."""
    named = os.environ.get(variable)
    commands = (named,) if named else _COMMANDS.get(variable, ())
    return next((path for command in commands if (path := shutil.which(command))), None)


def needs(*variables: str) -> pytest.MarkDecorator:
    """The mark of a test that is skipped where one of these programs is missing."""
    missing = [variable for variable in variables if program(variable) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} name no program")
