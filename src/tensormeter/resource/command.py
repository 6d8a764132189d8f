"""A command line that can be shown: without what looks like a secret."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["mask_secrets"]

_MASK: Final = "***"

_SECRET_NAME: Final = re.compile(
    r"(token|secret|passw(or)?d|passphrase|credential|api[-_.]?key|access[-_.]?key|private[-_.]?key|auth)(?![a-z])",
    re.IGNORECASE,
)
_SECRET_VALUE: Final = re.compile(
    r"hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}|AKIA[A-Z0-9]{12,}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|(?i:(?<=bearer )|(?<=basic ))\S+",
)
"""Tokens that say what they are: Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, Google, JSON Web Tokens, HTTP's header."""

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
"""User and password in a URL."""

_ASSIGNMENT: Final = re.compile(r"(-{0,2}[\w.+-]+)=(.*)", re.DOTALL)
_MOST_ARGUMENTS: Final = 64
_LONGEST_ARGUMENT: Final = 256
"""Characters: a whole program can stand behind `python -c`, and a ring has little space for it."""

_SHORTEST_SECRET: Final = 6
"""Characters of a variable's value that is worth looking for: `1` is no secret."""


def mask_secrets(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Replace secrets in a command line by `***`.

    Masked are: values of options and assignments whose name sounds like a secret (`--api-key X`, `db.password=X`), the user
    and password of a URL, tokens of well-known form, and values of environment variables whose name sounds like a secret.

    Args:
        arguments: The command line.
        environment: Of the process.

    Returns:
        The arguments; long ones, and many, are cut off, which a last `...` shows.
    """
    known = [
        value for name, value in environment.items() if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name)
    ]
    shown = []
    follows = False
    for argument in arguments:
        if follows and not argument.startswith("--"):
            shown.append(_MASK)
            follows = False
            continue
        follows = False
        assignment = _ASSIGNMENT.fullmatch(argument)
        if assignment and _SECRET_NAME.search(assignment[1]):
            shown.append(f"{assignment[1]}={_MASK}")
            continue
        if argument.startswith("-") and not assignment and _SECRET_NAME.search(argument):
            follows = True
        masked = _CREDENTIALS.sub(_MASK, _SECRET_VALUE.sub(_MASK, argument))
        for secret in known:
            masked = masked.replace(secret, _MASK)
        shown.append(masked if len(masked) <= _LONGEST_ARGUMENT else f"{masked[:_LONGEST_ARGUMENT]}...")
    return shown if len(shown) <= _MOST_ARGUMENTS else [*shown[:_MOST_ARGUMENTS], "..."]
