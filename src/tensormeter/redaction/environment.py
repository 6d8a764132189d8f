"""Secrets that a process has in its environment: a script can record them under any name."""

import re
from collections.abc import Mapping
from typing import Final

from tensormeter.redaction.names import Suspicion, suspect
from tensormeter.redaction.values import is_secret

__all__ = ["environment_secrets"]

_SHORTEST: Final = 6
"""Characters of a value that is worth looking for: `1` is no secret."""

_WORD: Final = re.compile(r"[a-z]{1,11}|[A-Z]{1,11}|[A-Z][a-z]{1,10}")
"""Values that are no secrets, whatever the name: `github` in `CI_AUTH`."""

_SHELL: Final = frozenset(("PWD", "OLDPWD"))
"""The working folder, and the one before."""


def environment_secrets(environment: Mapping[str, str]) -> list[str]:
    """Values of the variables whose names are those of secrets, the longest first."""
    found = {
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST
        and not _WORD.fullmatch(value)
        and name not in _SHELL
        and (suspect(name) >= Suspicion.SECRET or is_secret(value, suspect(name)))
    }
    return sorted(found, key=len, reverse=True)
