"""Secrets in the process's environment, which a script may record under any name."""

import re
from collections.abc import Mapping
from typing import Final

from tensormeter.redaction.names import Suspicion, suspect
from tensormeter.redaction.values import is_secret

__all__ = ["environment_secrets"]

_SHORTEST: Final = 6
"""Minimum length of a secret in characters. Shorter values, such as `1`, also occur in harmless strings."""

_WORD: Final = re.compile(r"[a-z]{1,11}|[A-Z]{1,11}|[A-Z][a-z]{1,10}")
"""Plain words, which are never secrets, such as the value `github` of `CI_AUTH`."""

_SHELL: Final = frozenset(("PWD", "OLDPWD"))
"""Variables that contain the current and the previous working folder."""


def environment_secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables whose names indicate a secret, in descending order of length."""
    secrets = {
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST
        and not _WORD.fullmatch(value)
        and name not in _SHELL
        and (suspect(name) >= Suspicion.SECRET or is_secret(value, suspect(name)))
    }
    return sorted(secrets, key=len, reverse=True)
