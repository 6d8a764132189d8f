"""Redaction of what a program prints: lines, log messages and tracebacks."""

import re
from collections.abc import Iterable
from typing import Final

from tensormeter.redaction.text import mask_text
from tensormeter.redaction.values import MASK

__all__ = ["OutputMask", "mask_values"]

_KEY_BEGINS: Final = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----")
_KEY_ENDS: Final = re.compile(r"-----END [A-Z ]{0,40}PRIVATE KEY-----")
_MOST_KEY_LINES: Final = 200
"""Maximum number of lines of a private key. Output after that is shown again, even if the key has no end."""


class OutputMask:
    """Mask for output. It recognizes secrets by name and form, and the values of secret environment variables.

    Use one object for each stream of lines, because a private key spans several lines.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """
        Args:
            secrets: Further secrets, as from `environment_secrets`.
        """
        self._secrets = tuple(secrets)
        self._key_lines = 0

    def text(self, text: str) -> str:
        """Return a complete text, such as a traceback, with its secrets masked."""
        return mask_text(mask_values(text, self._secrets))

    def line(self, line: str) -> str:
        """Return the next line of a stream with its secrets masked. The lines of a private key become `***`."""
        if self._key_lines:
            self._key_lines = 0 if _KEY_ENDS.search(line) else self._key_lines - 1
            return MASK
        if "PRIVATE KEY-----" in line and _KEY_BEGINS.search(line) and not _KEY_ENDS.search(line):
            self._key_lines = _MOST_KEY_LINES
        return self.text(line)


def mask_values(text: str, secrets: Iterable[str]) -> str:
    """Replace each of the given secrets with `***`."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, MASK)
    return text
