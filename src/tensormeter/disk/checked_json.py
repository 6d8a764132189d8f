"""Small JSON documents with a checksum, which detects damage on disk.

Documents from earlier versions have no checksum and are accepted unchecked.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["is_intact", "pack", "unpack"]

_CHECKSUM: Final = "checksum"


def pack(document: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Encode a document with its checksum.

    Args:
        document: JSON values by name.
        indent: Spaces per indentation level; None for a single line.
    """
    return json.dumps({**document, _CHECKSUM: _checksum(document)}, indent=indent)


def unpack(text: str | bytes) -> dict[str, Any]:
    """Decode a document, and check its checksum.

    Raises:
        ValueError, TypeError: The text is not a JSON object, or does not match its checksum.
    """
    document = json.loads(text)
    if not isinstance(document, dict):
        raise TypeError(f"expected an object, got {type(document).__name__}")
    if not is_intact(document):
        raise ValueError("it does not match its checksum")
    return document


def is_intact(document: dict[str, Any]) -> bool:
    """Remove the checksum from a document, and return whether it matches the rest."""
    expected = document.pop(_CHECKSUM, None)
    return expected is None or bool(expected == _checksum(document))


def _checksum(document: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
