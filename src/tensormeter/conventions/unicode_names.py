"""Conversion of names to valid Unicode.

Python strings can contain half of a surrogate pair, for example from file names that are not UTF-8 (`os.fsdecode`).
Such strings cannot be encoded as UTF-8. Halves are escaped, because replacing each one with the same character would
make different names equal.
"""

__all__ = ["as_unicode", "printable"]


def as_unicode(name: str) -> str:
    r"""Escape unpaired surrogates in a name, as in ``caf\udce9``. Other names stay unchanged."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    r"""Escape unprintable characters such as line breaks, as in ``\n``, so that a string fits on one line."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
