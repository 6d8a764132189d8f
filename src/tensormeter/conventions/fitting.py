"""Making documents fit a limit: their size as JSON, and which values to leave out."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

__all__ = ["LeftOut", "fit", "json_bytes", "json_text"]

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class LeftOut(NamedTuple):
    """A value that was left out.

    Attributes:
        name: Where it was: keys, joined by dots.
        size: Its size as JSON, in bytes, with its key.
    """

    name: str
    size: int


def json_text(value: Any) -> str:
    """A JSON value as compact text, in which no line ends."""
    return _ENCODER.encode(value)


def json_bytes(value: Any, text: str | None = None) -> int:
    """Size of a value as JSON in UTF-8. Numbers that JSON lacks count as the texts that stand for them.

    Args:
        value: JSON values.
        text: The value's `json_text`, if it is there already.
    """
    text = json_text(value) if text is None else text
    quotes = 2 * (text.count("NaN") + text.count("Infinity"))
    return (len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))) + quotes


def fit(document: Mapping[str, Any], limit: int) -> tuple[dict[str, Any], list[LeftOut]]:
    """A document without its largest values, as many as it takes for the rest to fit; equal documents lose the same.

    Values in nested objects are left out one by one, lists as a whole.

    Args:
        document: JSON values.
        limit: Size of what is kept as JSON, in bytes.

    Returns:
        The rest, and what was left out, the largest first.
    """
    kept = _copy(document)
    excess = json_bytes(kept) - limit
    left_out: list[LeftOut] = []
    leaves = sorted(_leaves(kept, ()), key=lambda leaf: (-leaf[0], leaf[1])) if excess > 0 else []
    for size, path in leaves:
        if excess <= 0:
            break
        excess -= size + _remove(kept, path)
        left_out.append(LeftOut(".".join(path), size))
    return kept, left_out


def _copy(document: Mapping[str, Any]) -> dict[str, Any]:
    """With objects of its own; what is no object is shared."""
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in document.items()}


def _leaves(document: Mapping[str, Any], above: tuple[str, ...]) -> list[tuple[int, tuple[str, ...]]]:
    """What is no object, or an empty one: (size with the key, colon and comma; path)."""
    found: list[tuple[int, tuple[str, ...]]] = []
    for key, value in document.items():
        path = (*above, key)
        if isinstance(value, Mapping) and value:
            found += _leaves(value, path)
        else:
            found.append((json_bytes(key) + json_bytes(value) + 2, path))
    return found


def _remove(document: dict[str, Any], path: tuple[str, ...]) -> int:
    """Take a value out, and the objects that are empty then; returns the bytes of those."""
    inside = [document]
    for key in path[:-1]:
        inside.append(inside[-1][key])
    del inside[-1][path[-1]]
    freed = 0
    for depth in range(len(path) - 1, 0, -1):
        if inside[depth]:
            break
        del inside[depth - 1][path[depth - 1]]
        freed += json_bytes(path[depth - 1]) + 3  # the value in it had no comma
    return freed
