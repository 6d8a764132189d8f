"""Converts names to valid Unicode text.

Python's strings can contain half of a surrogate pair, as in file names that are not UTF-8 (`os.fsdecode`), which cannot be encoded.
A common substitute would make different names equal.
"""

__all__ = ["as_unicode", "printable"]


def as_unicode(name: str) -> str:
    r"""Escape halves of surrogate pairs in a name, as in ``caf\udce9``. Other names stay as they are."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    r"""Escape unprintable characters such as line ends, as in ``\n``, for one line of a message."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
