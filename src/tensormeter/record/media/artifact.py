"""Artifacts: files, folders and addresses, such as checkpoints. The agent describes them; they stay where they are."""

import os
import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from tensormeter.conventions.labels import fit_label
from tensormeter.conventions.semconv import ARTIFACT_EVENT
from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.record.media.item import EventContent
from tensormeter.record.values.classify import LONGEST_NAME, Refused
from tensormeter.record.warn_once import shown, text_of
from tensormeter.redaction import mask_address

__all__ = ["Artifact"]

_ADDRESS: Final = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]{0,40}://.")
_LONGEST_PLACE: Final = 4096
_MOST_ALIASES: Final = 64


class Artifact:
    """An artifact to record. Nothing is read from the disk.

    Attributes:
        name: Name of the artifact; "" until `pack` has returned.
    """

    def __init__(self, place: object, name: object, kind: object, aliases: object) -> None:
        """
        Args:
            place: Path of a file or folder, or an address such as `s3://bucket/model.pt`.
            name: Name of the artifact. None for the last part of its place.
            kind: Type of the artifact, such as "model".
            aliases: Aliases, such as "best", or a single one.
        """
        self._place = place
        self._name = name
        self._kind = kind
        self._aliases = aliases
        self.name = ""

    @property
    def shown(self) -> str:
        """Text that identifies the artifact in a warning."""
        return mask_address(text_of(self._place)) if self._name is None else text_of(self._name)

    def pack(self) -> EventContent:
        """Return the content of the artifact's file.

        Raises:
            Refused: The place is invalid.
        """
        place = _place_of(self._place)
        if _ADDRESS.match(place):
            address = mask_address(place)
            parts = urlsplit(address)
            last, where = unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.netloc, {"uri": address}
        else:
            try:
                path = os.path.abspath(place)
            except OSError as error:  # the working folder has been removed
                raise Refused(f"its path is relative, but the working folder is unknown ({error.strerror})") from None
            last, where = os.path.basename(path) or path, {"path": as_unicode(path)}
        self.name = as_unicode(text_of(self._name or last))[:LONGEST_NAME]
        body: dict[str, Any] = {
            "name": self.name,
            "type": fit_label(text_of(self._kind)),
            "aliases": list(dict.fromkeys(fit_label(text_of(alias)) for alias in _texts(self._aliases))),
            **where,
        }
        return EventContent(ARTIFACT_EVENT, body)


def _place_of(place: object) -> str:
    """Return a path or an address as text.

    Raises:
        Refused: It is neither, is empty, or is too long.
    """
    try:
        text = os.fspath(place)  # type: ignore[call-overload]
    except TypeError:
        raise Refused(f"expected a path or an address, got a {type(place).__name__}") from None
    text = os.fsdecode(text)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if not text or "\0" in text:
        raise Refused("its path is empty or contains a null character")
    if len(text) > _LONGEST_PLACE:
        raise Refused(f"its place has {len(text):,} characters; use at most {_LONGEST_PLACE:,}")
    return text


def _texts(aliases: object) -> list[object]:
    if aliases is None or isinstance(aliases, str):
        return [aliases] if aliases else []
    if not isinstance(aliases, Iterable):
        raise Refused(f"expected aliases as a list of strings, got {shown(aliases)}")
    texts = []
    for alias in aliases:
        texts.append(alias)
        if len(texts) > _MOST_ALIASES:
            raise Refused(f"it has more than {_MOST_ALIASES} aliases")
    return texts
