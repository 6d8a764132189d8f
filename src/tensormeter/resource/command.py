"""A command line that can be shown: without what looks like a secret."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tensormeter.redaction import MASK, Suspicion, mask_arguments, suspect

__all__ = ["mask_secrets"]

_MOST_ARGUMENTS: Final = 64
_LONGEST_ARGUMENT: Final = 256
"""Characters: a whole program can stand behind `python -c`, and a ring has little space for it."""

_SHORTEST_SECRET: Final = 6
"""Characters of a variable's value that is worth looking for: `1` is no secret."""

_WORD: Final = re.compile(r"[a-z]{1,11}|[A-Z]{1,11}|[A-Z][a-z]{1,10}")
"""Values of variables that are no secrets, whatever the name: `github` in `CI_AUTH`."""

_NO_SECRETS: Final = frozenset(("PWD", "OLDPWD"))
"""Variables of the shell: the working folder, and the one before."""


def mask_secrets(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Replace secrets in a command line by `***`.

    Masked is what `tensormeter.redaction` finds by name or form, and values of environment variables whose name is that of a
    secret, wherever they are.

    Args:
        arguments: The command line.
        environment: Of the process.

    Returns:
        The arguments; long ones, and many, are cut off, which a last `...` shows.
    """
    known = sorted(_known(environment), key=len, reverse=True)
    shown = []
    for argument in mask_arguments(arguments[: _MOST_ARGUMENTS + 1]):
        masked = argument
        for secret in known:
            masked = masked.replace(secret, MASK)
        shown.append(masked if len(masked) <= _LONGEST_ARGUMENT else f"{masked[:_LONGEST_ARGUMENT]}...")
    return shown if len(shown) <= _MOST_ARGUMENTS else [*shown[:_MOST_ARGUMENTS], "..."]


def _known(environment: Mapping[str, str]) -> Iterator[str]:
    """Secrets of the environment: a script can be given one under any name."""
    for name, value in environment.items():
        looks_like_one = len(value) >= _SHORTEST_SECRET and not _WORD.fullmatch(value)
        if looks_like_one and name not in _NO_SECRETS and suspect(name) >= Suspicion.SECRET:
            yield value
