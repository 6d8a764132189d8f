"""Mappings with attribute access, through which scripts read and change a run's configuration and summary."""

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Self

from tensormeter.session.config.conversion import key_to_text
from tensormeter.session.config.document import Document

__all__ = ["View"]


class View(MutableMapping[str, Any]):
    """A run's configuration or summary, or an object nested in it.

    ``run.config["lr"] = 0.1``, ``run.config.lr = 0.1`` and ``run.config.update(lr=0.1)`` do the same. Each change is recorded. It
    does no I/O except for one write to a file in memory, and never raises because of a value.

    Values are converted to JSON values when they are written (see `init`), so ``run.config["lr"]`` returns the recorded value.
    Nested objects are returned as views; use `as_dict` for plain dicts. Keys that begin with an underscore, and keys that are
    names of methods, such as `update`, need the form with brackets.

    Thread-safe. Two threads that change the same object at the same time both succeed.
    """

    __slots__ = ("_document", "_path")
    _document: Document
    _path: tuple[str, ...]

    def __init__(self, document: Document, path: tuple[str, ...] = ()) -> None:
        """
        Args:
            document: Document to show.
            path: Keys of the nested object to show; empty for the whole document.
        """
        object.__setattr__(self, "_document", document)
        object.__setattr__(self, "_path", path)

    def __getitem__(self, key: Any) -> Any:
        name = key_to_text(key)
        value = self._values()[name]
        return View(self._document, (*self._path, name)) if isinstance(value, Mapping) else copy.copy(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._document.assign(self._path, key, value)

    def __delitem__(self, key: Any) -> None:
        self._document.remove(self._path, key_to_text(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __contains__(self, key: object) -> bool:
        return key_to_text(key) in self._values()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {'.'.join((*self._path, name))!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"there is no {'.'.join((*self._path, name))!r}") from None

    def update(self, values: Any = (), /, **named: Any) -> None:
        """Add or replace values. Nested objects are merged: ``update({"opt": {"lr": 1}})`` keeps the other values of `opt`.

        Args:
            values: Mapping, pairs, `argparse.Namespace`, dataclass instance or another object with named values.
            named: Further values by name.
        """
        if isinstance(values, list | tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in values):
            values = dict(values)
        if values:
            self._document.merge(self._path, values)
        if named:
            self._document.merge(self._path, named)

    def __ior__(self, values: Any) -> Self:
        """Add or replace values, like `update`."""
        self.update(values)
        return self

    def __or__(self, values: Any) -> Any:
        """Return a plain dict with these values and the given ones, without a change to the document."""
        return {**self.as_dict(), **values} if isinstance(values, Mapping) else NotImplemented

    def __ror__(self, values: Any) -> Any:
        return {**values, **self.as_dict()} if isinstance(values, Mapping) else NotImplemented

    def as_dict(self) -> dict[str, Any]:
        """Return a copy as plain dicts, lists and scalars."""
        return copy.deepcopy(_plain(self._values()))

    copy = as_dict

    def _values(self) -> Mapping[str, Any]:
        return self._document.at(self._path)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        return repr(self.as_dict())

    def __copy__(self) -> dict[str, Any]:
        return self.as_dict()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return self.as_dict()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values as a plain dict."""
        return dict, (self.as_dict(),)


def _plain(values: Any) -> Any:
    return {key: _plain(value) for key, value in values.items()} if isinstance(values, Mapping) else values
