"""Names as Unicode text.

Python's strings can hold half of a surrogate pair, as in file names that are not UTF-8 (`os.fsdecode`). It has no encoding. If
something else stood for it, different names would become the same.
"""

__all__ = ["as_unicode", "printable"]


def as_unicode(name: str) -> str:
    r"""A name in which half of a surrogate pair is written out, as in ``caf\udce9``. Other names stay as they are."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    r"""A text for one line of a message: what cannot be printed, such as an end of line, is written out, as in ``\n``."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
