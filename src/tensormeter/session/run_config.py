"""A run's configuration: what a script gives as a mapping of anything, as JSON values."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.errors import SettingsError
from tensormeter.logger import get_logger
from tensormeter.record.warn_once import shown

__all__ = ["as_json"]

logger: Final = get_logger()

_MAX_DEPTH: Final = 24
"""Levels of a configuration: protobuf's decoders refuse messages nested a hundred deep, and OTLP takes three a level."""

_MOST_NAMED: Final = 10
"""Faults in one warning, at most."""

_MOST_REMEMBERED: Final = 1000


def as_json(config: Mapping[str, Any], said: set[str] | None = None) -> dict[str, Any]:
    """The configuration as JSON values.

    What cannot be written as JSON is left out, and named in one warning.

    Args:
        config: Of anything. What JSON has no type for becomes its `str`.
        said: What was warned about before, and is not warned about again; what is warned about is added.

    Raises:
        SettingsError: Not a mapping.
    """
    if not isinstance(config, Mapping):
        raise SettingsError(f"config: expected a mapping, got {type(config).__name__}")
    conversion = _Conversion()
    values = conversion.top(config)
    said = set() if said is None else said
    new = [fault for fault in dict.fromkeys(conversion.faults) if fault not in said]
    if new:
        if len(said) < _MOST_REMEMBERED:
            said.update(new[:_MOST_REMEMBERED])
        more = f"; and {len(new) - _MOST_NAMED} more" if len(new) > _MOST_NAMED else ""
        logger.warning("config: %s%s", "; ".join(new[:_MOST_NAMED]), more)
    return values


class _ValueError(Exception):
    """A value cannot be written as JSON."""


class _Conversion:
    """Makes JSON values of one configuration.

    Attributes:
        faults: Sentences about what was left out, and about keys that have changed.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._inside: list[int] = []

    def top(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The whole of it."""
        self._inside.append(id(config))
        try:
            pairs = list(config.items())
        except Exception as error:  # of the mapping's own code
            self.faults.append(f"nothing of it is recorded: its items cannot be had ({type(error).__name__})")
            return {}
        return self._pairs(((key, str, value) for key, value in pairs), "")

    def _pairs(self, pairs: Iterable[tuple[Any, Any, Any]], above: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        given: dict[str, Any] = {}
        for key, to_text, value in pairs:
            try:
                text = str.__str__(to_text(key))
            except Exception as error:  # of the key's own code
                self.faults.append(f"{above}{shown(key)} is left out: it is no text ({type(error).__name__})")
                continue
            name = as_unicode(text)
            place = f"{above}{shown(name)}"
            if name != text:
                self.faults.append(f"{above}{shown(text)} is recorded as {place}: it is not Unicode text")
            if name in given:
                self.faults.append(f"{above}{shown(given[name])} is replaced by {shown(key)}: both are written {place}")
            try:
                found[name] = self._value(value, f"{place}.")
                given[name] = key
            except _ValueError as fault:
                self.faults.append(f"{place} is left out: {fault}")
            except Exception as error:  # of the value's own code
                kind = type(value).__name__
                self.faults.append(f"{place} is left out: a {kind} that cannot be shown ({type(error).__name__})")
        return found

    def _value(self, value: Any, above: str) -> Any:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return _integer(value)
        if isinstance(value, float):
            return float.__float__(value)
        if not isinstance(value, dict | list | tuple):
            return str.__str__(str(value))
        if id(value) in self._inside:
            raise _ValueError("it contains itself")
        if len(self._inside) >= _MAX_DEPTH:
            raise _ValueError(f"nested deeper than {_MAX_DEPTH} levels; flatten it")
        self._inside.append(id(value))
        try:
            if isinstance(value, dict):
                return self._pairs([(key, _key, one) for key, one in list(value.items())], above)
            return self._items(value, above)
        finally:
            self._inside.pop()

    def _items(self, items: Iterable[Any], above: str) -> list[Any]:
        """A list; null stands for what cannot be written, so that the others keep their places."""
        found: list[Any] = []
        for index, item in enumerate(list(items)):
            try:
                found.append(self._value(item, f"{above}{index}."))
                continue
            except _ValueError as fault:
                self.faults.append(f"{above}{index} is null: {fault}")
            except Exception as error:  # of the value's own code
                kind = type(item).__name__
                self.faults.append(f"{above}{index} is null: a {kind} that cannot be shown ({type(error).__name__})")
            found.append(None)
        return found


def _integer(value: int) -> int:
    number = int.__int__(value)
    try:
        int.__repr__(number)
    except ValueError:
        raise _ValueError("the integer has too many digits; give it as a text") from None
    return number


def _key(key: Any) -> str:
    """As JSON has it."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    return str(key)
