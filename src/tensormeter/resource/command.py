"""A command line that can be shown: without what looks like a secret."""

from collections.abc import Mapping, Sequence
from typing import Final

from tensormeter.redaction import MASK, environment_secrets, mask_arguments

__all__ = ["mask_secrets"]

_MOST_ARGUMENTS: Final = 64
_LONGEST_ARGUMENT: Final = 256
"""Characters: a whole program can stand behind `python -c`, and a ring has little space for it."""


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
    known = environment_secrets(environment)
    shown = []
    for argument in mask_arguments(arguments[: _MOST_ARGUMENTS + 1]):
        masked = argument
        for secret in known:
            masked = masked.replace(secret, MASK)
        shown.append(masked if len(masked) <= _LONGEST_ARGUMENT else f"{masked[:_LONGEST_ARGUMENT]}...")
    return shown if len(shown) <= _MOST_ARGUMENTS else [*shown[:_MOST_ARGUMENTS], "..."]
