"""Conversion of names to valid names of a destination. Different names stay different.

An invalid name is changed and gets a suffix, which is a hash of the whole original name. The result is therefore the
same in every agent and on every node, regardless of the order of names. Valid names stay unchanged.
"""

import hashlib
from collections.abc import Callable
from typing import Final

from tensormeter.logger import get_logger

__all__ = ["ChangedNames", "suffix_of"]

logger: Final = get_logger("tensormeter.agent")

_DIGITS: Final = 8
_MOST_WARNINGS: Final = 100
_LONGEST_SHOWN: Final = 100


def suffix_of(original: str) -> str:
    """Return an underscore and eight hexadecimal digits of a string's hash, at least one letter and one numeral."""
    text = original.encode("utf-8", "surrogatepass")
    while True:
        digest = hashlib.sha256(text).hexdigest()
        digits = digest[:_DIGITS]
        if not digits.isdecimal() and not digits.isalpha():
            return f"_{digits}"
        text = digest.encode()


def _looks_changed(name: str) -> bool:
    """Return whether a name ends like a changed name. Such names are changed too, so that no two names are equal."""
    digits = name[-_DIGITS:]
    return (
        name[-_DIGITS - 1 : -_DIGITS] == "_"
        and len(digits) == _DIGITS
        and all(letter in "0123456789abcdef" for letter in digits)
        and not digits.isdecimal()
        and not digits.isalpha()
    )


class ChangedNames:
    """Converter of names for one destination. It logs a warning for each changed name, up to 100. Not thread-safe."""

    def __init__(
        self, destination: str, rule: str, clean: Callable[[str], str], longest: int, *, in_bytes: bool = False
    ) -> None:
        """
        Args:
            destination: Name of the destination, for warnings.
            rule: Description of valid names, for warnings.
            clean: Function that converts any string to a valid name of unlimited length.
            longest: Maximum length of a name with its suffix, in characters or bytes.
            in_bytes: Whether `longest` is in UTF-8 bytes.
        """
        self._destination = destination
        self._rule = rule
        self._clean = clean
        self._longest = longest
        self._in_bytes = in_bytes
        self._known: dict[str, str] = {}
        self._warnings = 0

    def __call__(self, original: str) -> str:
        """Return the name under which the destination stores the original name."""
        name = self._known.get(original)
        if name is None:
            name = self._known[original] = self._choose(original)
            if name != original:
                self._warn(original, name)
        return name

    def _choose(self, original: str) -> str:
        clean = self._clean(original)
        size = len(original.encode(errors="replace")) if self._in_bytes else len(original)
        if clean == original and size <= self._longest and not _looks_changed(original):
            return original
        suffix = suffix_of(original)
        room = self._longest - len(suffix)
        kept = clean.encode()[:room].decode(errors="ignore") if self._in_bytes else clean[:room]
        # Slashes, dots and spaces are not valid at the start or end of a name.
        return f"{self._clean(kept).rstrip('/. ')}{suffix}"

    def _warn(self, original: str, name: str) -> None:
        self._warnings += 1
        if self._warnings <= _MOST_WARNINGS:
            more = "; further renames will not be reported" if self._warnings == _MOST_WARNINGS else ""
            clean = self._clean(original) == original and name.startswith(original)
            rule = "a name that looks like a changed name also gets a suffix" if clean else self._rule
            logger.warning(
                "%s: %r is stored as %r: %s%s", self._destination, _short(original), _short(name), rule, more
            )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_SHOWN else f"{name[: _LONGEST_SHOWN // 2]}...{name[-_LONGEST_SHOWN // 2 :]}"
