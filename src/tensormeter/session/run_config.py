"""Conversion of a run's configuration, a mapping of arbitrary Python values, to JSON values."""

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
"""Maximum nesting depth of a configuration. Protobuf decoders refuse 100 levels, and OTLP uses three per level."""

_MOST_NAMED: Final = 10
"""Maximum number of faults that one warning lists."""

_MOST_REMEMBERED: Final = 1000
"""Maximum number of faults to remember, so that warnings about them are not repeated."""


def as_json(config: Mapping[str, Any], warned: set[str] | None = None) -> dict[str, Any]:
    """Convert a configuration to JSON values.

    Values that cannot be converted are omitted, and one warning names all of them.

    Args:
        config: Configuration to convert. Values that JSON cannot represent are converted with `str`.
        warned: Faults that earlier calls have warned about. New faults are added. None if there were no earlier calls.

    Raises:
        SettingsError: `config` is not a mapping.
    """
    if not isinstance(config, Mapping):
        raise SettingsError(f"config: expected a mapping, got {type(config).__name__}")
    conversion = _Conversion()
    values = conversion.top(config)
    warned = set() if warned is None else warned
    new = [fault for fault in dict.fromkeys(conversion.faults) if fault not in warned]
    if new:
        if len(warned) < _MOST_REMEMBERED:
            warned.update(new[:_MOST_REMEMBERED])
        more = f"; and {len(new) - _MOST_NAMED} more" if len(new) > _MOST_NAMED else ""
        logger.warning("config: %s%s", "; ".join(new[:_MOST_NAMED]), more)
    return values


class _ValueError(Exception):
    """A value cannot be converted to JSON."""


class _Conversion:
    """Conversion of one configuration to JSON values.

    Attributes:
        faults: One sentence for each value that was omitted or set to null, and for each key that was changed.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._inside: list[int] = []

    def top(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the whole configuration."""
        self._inside.append(id(config))
        try:
            pairs = list(config.items())
        except Exception as error:  # raised by the mapping's own code
            self.faults.append(f"it is not recorded, because its items() raised {type(error).__name__}; pass a dict")
            return {}
        return self._pairs(((key, str, value) for key, value in pairs), "")

    def _pairs(self, pairs: Iterable[tuple[Any, Any, Any]], above: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        for key, to_text, value in pairs:
            try:
                text = str.__str__(to_text(key))
            except Exception as error:  # raised by the key's own code
                self.faults.append(
                    f"{above}{shown(key)} is left out: cannot convert the key to text ({type(error).__name__})"
                )
                continue
            name = as_unicode(text)
            path = f"{above}{shown(name)}"
            if name != text:
                self.faults.append(f"{above}{shown(text)} is recorded as {path}, because the key is not valid Unicode")
            if name in keys:
                self.faults.append(
                    f"{above}{shown(keys[name])} is replaced by {shown(key)}: both are recorded as {path}"
                )
            try:
                values[name] = self._value(value, f"{path}.")
                keys[name] = key
            except _ValueError as fault:
                self.faults.append(f"{path} is left out: {fault}")
            except Exception as error:  # raised by the value's own code
                kind = type(value).__name__
                self.faults.append(
                    f"{path} is left out: cannot convert a {kind} ({type(error).__name__}); pass a number or text"
                )
        return values

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
            raise _ValueError(f"it is nested deeper than {_MAX_DEPTH} levels; flatten it")
        self._inside.append(id(value))
        try:
            if isinstance(value, dict):
                return self._pairs([(key, _key, item) for key, item in list(value.items())], above)
            return self._items(value, above)
        finally:
            self._inside.pop()

    def _items(self, items: Iterable[Any], above: str) -> list[Any]:
        """Convert a list. Values that cannot be converted become null, so that the others keep their positions."""
        values: list[Any] = []
        for index, item in enumerate(list(items)):
            try:
                values.append(self._value(item, f"{above}{index}."))
                continue
            except _ValueError as fault:
                self.faults.append(f"{above}{index} is stored as null: {fault}")
            except Exception as error:  # raised by the value's own code
                kind = type(item).__name__
                self.faults.append(
                    f"{above}{index} is stored as null: cannot convert a {kind} ({type(error).__name__}); pass a "
                    "number or text"
                )
            values.append(None)
        return values


def _integer(value: int) -> int:
    number = int.__int__(value)
    try:
        int.__repr__(number)
    except ValueError:
        raise _ValueError("the integer has too many digits; pass it as text") from None
    return number


def _key(key: Any) -> str:
    """Convert a key to a string as `json.dumps` does."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    return str(key)
