"""Names as a destination can store them: two that differ never become one.

A name that a destination cannot store is changed, and always gets a suffix that follows from the whole original. So it is the same in
every agent, on every node, and in any order. A name that can be stored stays as it is.
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
    """An underscore and eight hexadecimal digits that follow from a text, at least one letter and one numeral among them."""
    text = original.encode("utf-8", "surrogatepass")
    while True:
        digest = hashlib.sha256(text).hexdigest()
        digits = digest[:_DIGITS]
        if not digits.isdecimal() and not digits.isalpha():
            return f"_{digits}"
        text = digest.encode()


def _looks_changed(name: str) -> bool:
    """Whether a name ends as changed ones do. Such a name is changed, too: so it cannot be that of another one."""
    digits = name[-_DIGITS:]
    return (
        name[-_DIGITS - 1 : -_DIGITS] == "_"
        and len(digits) == _DIGITS
        and all(letter in "0123456789abcdef" for letter in digits)
        and not digits.isdecimal()
        and not digits.isalpha()
    )


class ChangedNames:
    """Names of one destination, and warnings about those that it cannot store. Used by one thread."""

    def __init__(
        self, destination: str, rule: str, clean: Callable[[str], str], longest: int, *, in_bytes: bool = False
    ) -> None:
        """
        Args:
            destination: Name of the destination, for warnings.
            rule: What names it stores, for warnings.
            clean: Makes a name of any text, if possible the same.
            longest: How much of a name, at most, suffix included: UTF-8 bytes if `in_bytes`, else characters.
            in_bytes: As above.
        """
        self._destination = destination
        self._rule = rule
        self._clean = clean
        self._longest = longest
        self._in_bytes = in_bytes
        self._known: dict[str, str] = {}
        self._warnings = 0

    def __call__(self, original: str) -> str:
        """The name under which something is stored."""
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
        # What was cut may end in what may stand in the middle only, such as a slash.
        return f"{self._clean(kept).rstrip('/. ')}{suffix}"

    def _warn(self, original: str, name: str) -> None:
        self._warnings += 1
        if self._warnings <= _MOST_WARNINGS:
            more = "; further names that are changed are not listed" if self._warnings == _MOST_WARNINGS else ""
            clean = self._clean(original) == original and name.startswith(original)
            rule = "names that are changed end like that" if clean else self._rule
            logger.warning(
                "%s: %r is stored as %r: %s%s", self._destination, _short(original), _short(name), rule, more
            )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_SHOWN else f"{name[: _LONGEST_SHOWN // 2]}...{name[-_LONGEST_SHOWN // 2 :]}"
