"""The process's command line, with secrets masked."""

from collections.abc import Mapping, Sequence
from typing import Final

from tensormeter.redaction import environment_secrets, mask_arguments, mask_values

__all__ = ["mask_secrets"]

_MOST_ARGUMENTS: Final = 64
_LONGEST_ARGUMENT: Final = 256
"""Maximum characters per argument. An argument of `python -c` may be a whole program, but a ring has little space."""


def mask_secrets(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Replace secrets in a command line with `***`.

    The function masks secrets that `tensormeter.redaction` recognizes by name or form. It also masks the values of
    environment variables whose names indicate a secret, wherever these values occur.

    Args:
        arguments: Command line.
        environment: Environment variables of the process.

    Returns:
        Arguments with secrets masked. Long arguments and long lists are truncated and end with `...`.
    """
    secrets = environment_secrets(environment)
    result = []
    for argument in mask_arguments(arguments[: _MOST_ARGUMENTS + 1]):
        masked = mask_values(argument, secrets)
        result.append(masked if len(masked) <= _LONGEST_ARGUMENT else f"{masked[:_LONGEST_ARGUMENT]}...")
    return result if len(result) <= _MOST_ARGUMENTS else [*result[:_MOST_ARGUMENTS], "..."]
