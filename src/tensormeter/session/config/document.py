"""A JSON object that belongs to a run and that scripts may change: its configuration or its summary."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from tensormeter.conventions.fitting import OmittedValue, fit, json_bytes
from tensormeter.session.config.conversion import to_json

__all__ = ["Document"]

_ALL_LEVELS: Final = 1 << 30

Changes = Mapping[str, Any] | None
"""Top-level entries that were added or replaced; None if entries were removed."""


class Document:
    """Values of a document, converted, masked and limited in size.

    The object never raises because of a value. It never modifies `values`, but replaces it, so readers need no lock.

    Attributes:
        values: JSON values by name.
        omitted: Values that were left out because they or the document were too large. The owner reports and clears them. A
            warning has already named those of size 0.
    """

    def __init__(
        self,
        noun: str,
        limit: int,
        mask: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        store: Callable[[Callable[[], Changes]], None],
        *,
        null_removes: bool = False,
    ) -> None:
        """
        Args:
            noun: Noun for the document in warnings, such as "config".
            limit: Maximum size of the document as JSON, in bytes.
            mask: Function that returns a copy of JSON values without secrets.
            store: Function that calls its argument to make a change and then sends it, or does not if the run has finished. Calls
                must not overlap.
            null_removes: Whether a removed value is stored as null, so that the server removes it, too, although it merges the
                documents of all processes.
        """
        self.values: Mapping[str, Any] = {}
        self.omitted: list[OmittedValue] = []
        self._noun = noun
        self._limit = limit
        self._mask = mask
        self._store = store
        self._null_removes = null_removes
        self._bytes = 0
        self._faults: set[str] = set()

    def begin(self, values: Any) -> None:
        """Set the initial values, without storing them."""
        self._put(self._mask(self._converted(values)), 0)

    def merge(self, path: tuple[str, ...], values: Any) -> None:
        """Add or replace values. Nested objects are merged, too.

        Args:
            path: Keys of the nested object to change; empty for the whole document.
            values: Mapping or other object with named values.
        """
        self._change(path, values, _ALL_LEVELS)

    def assign(self, path: tuple[str, ...], name: Any, value: Any) -> None:
        """Add or replace one value of the nested object at `path`."""
        self._change(path, {name: value}, len(path))

    def remove(self, path: tuple[str, ...], name: str) -> None:
        """Remove one value of the nested object at `path`.

        Raises:
            KeyError: There is no such value.
        """
        self.at(path)[name]
        if self._null_removes:
            self.assign(path, name, None)
        else:
            self._store(lambda: self._remove((*path, name)))

    def at(self, path: tuple[str, ...]) -> Mapping[str, Any]:
        """Return the nested object at a path.

        Raises:
            KeyError: There is no object at the path.
        """
        values = self.values
        for key in path:
            values = values[key]
            if not isinstance(values, Mapping):
                raise KeyError(key)
        return {key: value for key, value in values.items() if value is not None} if self._null_removes else values

    def _change(self, path: tuple[str, ...], values: Any, levels: int) -> None:
        converted = self._converted(_nested(path, values))
        self._store(lambda: self._put(self._mask(converted), levels))

    def _converted(self, values: Any) -> dict[str, Any]:
        too_large: list[str] = []
        converted = to_json(values, self._faults, noun=self._noun, too_large=too_large)
        self.omitted += [OmittedValue(name, 0) for name in too_large]
        return converted

    def _put(self, added: Mapping[str, Any], levels: int) -> Changes:
        self.values = _merged(self.values, added, levels)
        self._bytes += json_bytes(added)
        if self._bytes <= self._limit:
            return {name: self.values[name] for name in added}
        # `_bytes` is an upper bound, because entries may have been replaced.
        self.values, omitted = fit(self.values, self._limit)
        self.omitted += omitted
        self._bytes = json_bytes(self.values)
        return None

    def _remove(self, path: tuple[str, ...]) -> Changes:
        self.values = _without(self.values, path)
        return None


def _nested(path: tuple[str, ...], values: Any) -> Any:
    for key in reversed(path):
        values = {key: values}
    return values


def _merged(old: Mapping[str, Any], new: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """Return `old` with the entries of `new`. Objects in both are merged down to `levels` levels, and replaced below."""
    merged = {**old}
    for name, value in new.items():
        before: Any = old.get(name)
        both = levels and isinstance(value, Mapping) and isinstance(before, Mapping)
        merged[name] = _merged(before, value, levels - 1) if both else value
    return merged


def _without(values: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    name, *rest = path
    if not rest:
        return {key: value for key, value in values.items() if key != name}
    inner = values.get(name)
    return {**values, name: _without(inner, tuple(rest))} if isinstance(inner, Mapping) else {**values}
