"""W&B's environment variables. An invalid one is ignored with a warning. `WANDB_API_KEY` is never read."""

import os
from collections.abc import Callable
from typing import Any, Final

from tensormeter.wandb.notices import warn_once

__all__ = ["MODES", "RESUMES", "as_flag", "read_environment"]

MODES: Final = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "dryrun": "offline",
    "run": "online",
    "shared": "online",
}
"""W&B's modes, and the modes of a run that they become."""

RESUMES: Final = ("allow", "auto", "must", "never")

_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


def as_flag(text: str) -> bool:
    """Return the truth value of a text.

    Raises:
        ValueError: It is neither true nor false.
    """
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("expected true or false")
    return word in _TRUE


def _mode(text: str) -> str:
    word = text.strip().lower()
    if word not in MODES:
        raise ValueError(f"expected {', '.join(MODES)}")
    return word


def _resume(text: str) -> str | bool:
    word = text.strip().lower()
    if word in RESUMES:
        return word
    try:
        return as_flag(word)
    except ValueError:
        raise ValueError(f"expected {', '.join(RESUMES)}, true or false") from None


def _tags(text: str) -> list[str]:
    return [tag for tag in map(str.strip, text.split(",")) if tag]


_VARIABLES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "WANDB_PROJECT": ("project", str),
    "WANDB_ENTITY": ("entity", str),
    "WANDB_NAME": ("name", str),
    "WANDB_RUN_ID": ("id", str),
    "WANDB_RUN_GROUP": ("group", str),
    "WANDB_JOB_TYPE": ("job_type", str),
    "WANDB_TAGS": ("tags", _tags),
    "WANDB_NOTES": ("notes", str),
    "WANDB_MODE": ("mode", _mode),
    "WANDB_DISABLED": ("disabled", as_flag),
    "WANDB_SILENT": ("silent", as_flag),
    "WANDB_DIR": ("dir", str),
    "WANDB_RESUME": ("resume", _resume),
}
"""Name of each variable's argument of `init` or field of `Settings`, and function that reads the text."""


def read_environment() -> dict[str, Any]:
    """Return the values of W&B's variables by the name of the argument. Empty and invalid variables are left out."""
    values: dict[str, Any] = {}
    for variable, (name, parse) in _VARIABLES.items():
        text = os.environ.get(variable, "")
        if not text.strip():
            continue
        try:
            values[name] = parse(text)
        except ValueError as error:
            warn_once((variable, text), "%s=%r is ignored: %s", variable, text[:100], error)
    return values
