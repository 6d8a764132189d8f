"""Names as Unicode text.

Python's strings can hold half of a surrogate pair, as in file names that are not UTF-8 (`os.fsdecode`). It has no encoding. If
something else stood for it, different names would become the same.
"""

__all__ = ["as_unicode"]


def as_unicode(name: str) -> str:
    r"""A name in which half of a surrogate pair is written out, as in ``caf\udce9``. Other names stay as they are."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()
