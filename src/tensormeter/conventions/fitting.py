"""Functions that fit JSON documents into a size limit by leaving out values."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

__all__ = ["OmittedValue", "fit", "json_bytes", "json_text"]

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class OmittedValue(NamedTuple):
    """A value that was left out.

    Attributes:
        name: Path of the value, as keys joined by dots.
        size: Size of the value and its key as JSON, in bytes.
    """

    name: str
    size: int


def json_text(value: Any) -> str:
    """Encode a JSON value as compact text on one line."""
    return _ENCODER.encode(value)


def json_bytes(value: Any, text: str | None = None) -> int:
    """Return the size of a value as JSON in UTF-8, in bytes. NaN and infinities count with quotation marks.

    Args:
        value: JSON value.
        text: Result of `json_text` for the value, if already available.
    """
    text = json_text(value) if text is None else text
    quotes = 2 * (text.count("NaN") + text.count("Infinity"))
    return (len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))) + quotes


def fit(document: Mapping[str, Any], limit: int) -> tuple[dict[str, Any], list[OmittedValue]]:
    """Leave out the largest values of a document until the rest fits. Equal documents lose the same values.

    Values in nested objects are left out one by one; lists are left out as a whole.

    Args:
        document: JSON values.
        limit: Maximum size of the rest as JSON, in bytes.

    Returns:
        The rest, and the values that were left out, in descending order of size.
    """
    kept = _copy(document)
    excess = json_bytes(kept) - limit
    left_out: list[OmittedValue] = []
    leaves = sorted(_leaves(kept, ()), key=lambda leaf: (-leaf[0], leaf[1])) if excess > 0 else []
    for size, path in leaves:
        if excess <= 0:
            break
        excess -= size + _remove(kept, path)
        left_out.append(OmittedValue(".".join(path), size))
    return kept, left_out


def _copy(document: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a document and its nested objects; all other values are shared with the original."""
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in document.items()}


def _leaves(document: Mapping[str, Any], above: tuple[str, ...]) -> list[tuple[int, tuple[str, ...]]]:
    """Return all values except non-empty objects, as pairs (size including key, colon and comma; path)."""
    leaves: list[tuple[int, tuple[str, ...]]] = []
    for key, value in document.items():
        path = (*above, key)
        if isinstance(value, Mapping) and value:
            leaves += _leaves(value, path)
        else:
            leaves.append((json_bytes(key) + json_bytes(value) + 2, path))
    return leaves


def _remove(document: dict[str, Any], path: tuple[str, ...]) -> int:
    """Remove a value and the objects that become empty, and return the size of those objects in bytes."""
    inside = [document]
    for key in path[:-1]:
        inside.append(inside[-1][key])
    del inside[-1][path[-1]]
    freed = 0
    for depth in range(len(path) - 1, 0, -1):
        if inside[depth]:
            break
        del inside[depth - 1][path[depth - 1]]
        freed += (
            json_bytes(path[depth - 1]) + 3
        )  # two braces, colon and comma, less the comma that the object's only value did not have
    return freed
