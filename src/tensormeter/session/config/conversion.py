"""Conversion of configurations, which may contain any Python objects, to JSON values."""

import functools
import json
import numbers
import re
from collections import UserString
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import Enum
from types import ModuleType
from typing import Any, Final

from tensormeter.conventions.limits import CONFIG_BYTES
from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.logger import get_logger
from tensormeter.record.media.frames import is_frame
from tensormeter.record.warn_once import shown
from tensormeter.session.config.arrays import is_array, summarize_array, summarize_frame
from tensormeter.session.config.unfolding import Pair, has_slots, is_collection, items_of, pairs_of, public_attributes

__all__ = ["key_to_text", "to_json"]

logger: Final = get_logger()

_MAX_DEPTH: Final = 24
"""Maximum nesting depth of a configuration. Protobuf decoders refuse 100 levels, and OTLP uses three per level."""

_MOST_VALUES: Final = 50_000
"""Maximum number of values in a configuration, which bounds the time that the conversion takes."""

_MOST_CHARACTERS: Final = 4 * CONFIG_BYTES
"""Maximum number of characters in all texts of a configuration together, for the same reason."""

_LONGEST_KEY: Final = 4096

_MOST_NAMED: Final = 10
"""Maximum number of faults that one warning lists."""

_MOST_REMEMBERED: Final = 1000
"""Maximum number of faults to remember, so that warnings about them are not repeated."""

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
"""Address of an object in its text, which differs from run to run."""


def to_json(
    config: Any, warned: set[str] | None = None, *, noun: str = "config", too_large: list[str] | None = None
) -> dict[str, Any]:
    """Convert a configuration to JSON values. Never raises, and never waits for a device.

    One warning names up to ten of the values that were omitted or changed.

    Args:
        config: Mapping, namespace, dataclass instance, or another object with named values (see `pairs_of`). Otherwise, the
            public attributes of the object or class are converted.
        warned: Faults that earlier calls have warned about. New faults are added. None if there were no earlier calls.
        noun: Noun for the configuration in the warning.
        too_large: List to which the names of values are added that were left out because they are too large.
    """
    conversion = _Conversion()
    values = conversion.top(config)
    _warn(noun, conversion.faults, set() if warned is None else warned)
    if too_large is not None:
        too_large += conversion.too_large
    return values


def _warn(noun: str, faults: list[str], warned: set[str]) -> None:
    new = [fault for fault in dict.fromkeys(faults) if fault not in warned]
    if new:
        if len(warned) < _MOST_REMEMBERED:
            warned.update(new[:_MOST_REMEMBERED])
        more = f"; and {len(new) - _MOST_NAMED} more" if len(new) > _MOST_NAMED else ""
        logger.warning("%s: %s%s", noun, "; ".join(new[:_MOST_NAMED]), more)


class _ValueError(Exception):
    """A value cannot be converted to JSON."""


class _TooLargeError(_ValueError):
    """A value is too large for a configuration."""


class _Conversion:
    """Conversion of one configuration to JSON values.

    Attributes:
        faults: One sentence for each value that was omitted, set to null or stored as text, and for each changed key.
        too_large: Names of the values that were left out because they are too large.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.too_large: list[str] = []
        self._inside: list[int] = []
        self._left = _MOST_VALUES
        self._is_full = False
        self._characters_left = _MOST_CHARACTERS

    def top(self, config: Any) -> dict[str, Any]:
        """Convert the whole configuration."""
        if config is None:
            return {}
        self._inside.append(id(config))
        kind = type(config)
        try:
            pairs = pairs_of(config, _MOST_VALUES)
            if pairs is None and (_has_attributes(config) or _has_fields(config)):
                pairs = public_attributes(config) or None
        except Exception as error:  # raised by the object's own code
            self.faults.append(
                f"it is not recorded, because reading its items raised {type(error).__name__}; pass a dict"
            )
            return {}
        if pairs is None:
            self.faults.append(f"it is not recorded, because a value of type {kind.__name__} has no names; pass a dict")
            return {}
        return self._pairs(pairs, "")

    def _pairs(self, pairs: list[Pair], above: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        for key, read in pairs:
            if self._left <= 0:
                self._report_full(f"{above}{shown(key)}")
                break
            try:
                text = key_to_text(key)
            except Exception as error:  # raised by the key's own code
                self.faults.append(
                    f"{above}{shown(key)} is left out: cannot convert the key to text ({type(error).__name__})"
                )
                continue
            if len(text) > _LONGEST_KEY:
                self.faults.append(f"{above}{shown(text)} is left out: the key is too long")
                continue
            name = as_unicode(text)
            path = f"{above}{shown(name)}"
            if name != text:
                self.faults.append(f"{above}{shown(text)} is recorded as {path}, because the key is not valid Unicode")
            if name in keys:
                self.faults.append(
                    f"{above}{shown(keys[name])} is replaced by {shown(key)}: both are recorded as {path}"
                )
            is_kept, value = self._convert(read, path, "is left out")
            if is_kept:
                values[name] = value
                keys[name] = key
        return values

    def _report_full(self, path: str) -> None:
        """Report the first of the values that exceed the limit on their number."""
        if not self._is_full:
            self._is_full = True
            self.too_large.append(path.replace("'", ""))
            self.faults.append(
                f"{path} and what follows is left out: the configuration has more than {_MOST_VALUES:,} values; log a Table or "
                "Text"
            )

    def _items(self, items: list[Any], above: str) -> list[Any]:
        """Convert a list. Values that cannot be converted become null, so that the others keep their positions."""
        return [
            self._convert(functools.partial(_same, item), f"{above}{index}", "is stored as null")[1]
            for index, item in enumerate(items)
        ]

    def _convert(self, read: Callable[[], Any], path: str, outcome: str) -> tuple[bool, Any]:
        """Read and convert a value. Return whether it could be converted, and the JSON value."""
        kind = "value"
        try:
            value = read()
            kind = type(value).__name__
            return True, self._value(value, path)
        except _ValueError as fault:
            self.faults.append(f"{path} {outcome}: {fault}")
            if isinstance(fault, _TooLargeError):
                self.too_large.append(path.replace("'", ""))
        except Exception as error:  # raised by the value's own code
            self.faults.append(
                f"{path} {outcome}: cannot convert a {kind} ({type(error).__name__}); pass a number or text"
            )
        return False, None

    def _value(self, value: Any, path: str) -> Any:
        self._left -= 1
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str | UserString):
            return self._string(str.__str__(str(value)))
        if isinstance(value, int):
            return _integer(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Enum):
            return self._value(_member_name(value), path)
        if is_frame(value) and hasattr(type(value), "shape") and not is_array(value):  # neither lazy nor a series
            return summarize_frame(value)
        if not is_array(value) and isinstance(
            value, numbers.Real | Decimal
        ):  # Fraction, and numbers of other libraries
            return float(value)
        if isinstance(value, bytes | bytearray | memoryview):
            self._check_length(value.nbytes if isinstance(value, memoryview) else len(value), "bytes")
            return self._string(bytes(value).decode("utf-8", "backslashreplace"))
        if isinstance(value, type) or (not is_array(value) and callable(value) and hasattr(value, "__qualname__")):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, Iterator):
            raise _ValueError(f"a {type(value).__name__} can be read only once; pass a list")
        return self._container(value, path)

    def _string(self, text: str) -> str:
        self._check_length(len(text), "characters")
        self._characters_left -= len(text)
        return as_unicode(text)

    def _check_length(self, length: int, unit: str) -> None:
        if length > self._characters_left:
            raise _TooLargeError(f"it has {length:,} {unit}, which is too much for a configuration; log a Text")

    def _array(self, value: Any, path: str) -> Any:
        converted = summarize_array(value)
        if isinstance(converted, list):  # the elements may be texts, dates or other objects
            return self._items(converted, f"{path}.")
        if not isinstance(converted, dict):
            return self._value(converted, path)
        if "first" in converted:
            return {**converted, "first": self._items(converted["first"], f"{path}.first.")}
        self.faults.append(
            f"{path} is recorded as its shape and dtype only, because reading its values may wait for a device; pass a "
            "number, or a copy on the CPU"
        )
        return converted

    def _container(self, value: Any, path: str) -> Any:
        """Convert an object that holds other values, or else convert it to text."""
        if id(value) in self._inside:
            raise _ValueError("it contains itself")
        if len(self._inside) >= _MAX_DEPTH:
            raise _ValueError(f"it is nested deeper than {_MAX_DEPTH} levels; flatten it")
        self._inside.append(id(value))
        try:
            if is_array(value):
                return self._array(value, path)
            if (pairs := pairs_of(value, max(self._left, 0) + 1)) is not None:
                return self._pairs(pairs, f"{path}.")
            if is_collection(value):
                if len(value) > self._left:
                    raise _TooLargeError(
                        f"it has {len(value):,} items, which is too much for a configuration; log a Table"
                    )
                return self._items(items_of(value), f"{path}.")
            if _has_attributes(value) and (pairs := public_attributes(value)):
                return self._pairs(pairs, f"{path}.")
        finally:
            self._inside.pop()
        return self._text(value, path)

    def _text(self, value: Any, path: str) -> str:
        kind = type(value)
        text = self._string(str.__str__(str(value)))
        if not _ADDRESS.search(text):
            return text
        name = f"{kind.__module__}.{kind.__qualname__}"
        self.faults.append(f"{path} is recorded as the text {name!r}, because it has no values to record")
        return name


def _same(value: Any) -> Any:
    return value


def _has_attributes(value: Any) -> bool:
    """Return whether a value is a class, a module, or a plain object whose type defines no text form."""
    if isinstance(value, type | ModuleType):
        return True
    own_text = any("__repr__" in vars(base) or "__str__" in vars(base) for base in type(value).__mro__[:-1])
    return (hasattr(value, "__dict__") or has_slots(type(value))) and not own_text


def _has_fields(config: Any) -> bool:
    """Return whether a whole configuration is an object with attributes, although its type also defines a text form."""
    return hasattr(config, "__dict__") and not isinstance(config, Enum | str) and not is_collection(config)


def _integer(value: int) -> int:
    number = int.__int__(value)
    try:
        int.__repr__(number)
    except ValueError:
        raise _ValueError("the integer has too many digits; pass it as text") from None
    return number


def key_to_text(key: Any) -> str:
    """Convert a key to a string as `json.dumps` does. The key of an enumeration is its member's name."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    return str.__str__(str(_member_name(key) if isinstance(key, Enum) else key))


def _member_name(member: Enum) -> Any:
    """Return the name of a member. A combination of flags that has no name, such as `Flag(0)`, is represented by its value."""
    name: str | None = member.name
    return member.value if name is None else name
