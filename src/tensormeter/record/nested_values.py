"""Names for the values of nested mappings: `{"train": {"loss": 1}}` is `train/loss`."""

from collections.abc import Mapping
from typing import Any, Final

from tensormeter.conventions.limits import METRIC_NAMES, NESTED_MAPPINGS
from tensormeter.record.values.outcomes import Refused
from tensormeter.record.warn_once import describe

__all__ = ["Flattened", "flatten", "flatten_numbers", "is_nested", "plain_key"]

_KEY_TYPES: Final = (int, float)


class Flattened:
    """The values of a log call by name.

    Attributes:
        values: Values by name. None of them is a mapping.
        refusals: Keys whose values cannot be read, with the reason.
        collisions: Names that occurred more than once. The last value counts.
    """

    __slots__ = ("collisions", "refusals", "values")

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.refusals: list[tuple[object, Refused]] = []
        self.collisions: list[str] = []


def is_nested(values: Mapping[str, Any]) -> bool:
    """Return whether any value of a dictionary is a mapping."""
    return any(kind is dict or issubclass(kind, Mapping) for kind in set(map(type, values.values())))


def flatten_numbers(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the numbers of nested dictionaries by name. None if there is anything else, which takes longer to flatten."""
    flat: dict[str, Any] = {}
    return flat if _add_numbers(flat, values, "", NESTED_MAPPINGS) == len(flat) else None


def _add_numbers(flat: dict[str, Any], values: dict[str, Any], prefix: str, depth: int) -> int:
    """Add the numbers, and return how many there are. The result is -1 if there is anything else."""
    added = 0
    for key, value in values.items():
        if type(key) is not str:
            return -1
        kind = type(value)
        if kind is float or kind is int:
            flat[prefix + key if prefix else key] = value
            added += 1
        elif kind is dict and depth:
            inner = _add_numbers(flat, value, f"{prefix}{key}/", depth - 1)
            if inner < 0:
                return -1
            added += inner
        else:
            return -1
    return added


def flatten(values: Mapping[str, Any]) -> Flattened:
    """Return all values of nested mappings. Keys of inner mappings may also be numbers. Never raises."""
    flat = Flattened()
    _add(flat, values, "", ())
    return flat


def plain_key(key: Any) -> Any:
    """Return the text of a key whose type is derived from `str`, such as a member of `StrEnum`. Others stay unchanged."""
    # isinstance would read the `__class__` of an unknown object, which may raise.
    return str.__str__(key) if type(key) is not str and issubclass(type(key), str) else key


def _add(flat: Flattened, values: Mapping[Any, Any], prefix: str, above: tuple[int, ...]) -> None:
    for given, value in _pairs(values, prefix, flat.refusals):
        key = plain_key(given)
        if prefix:
            if type(key) is not str and not issubclass(type(key), _KEY_TYPES):
                refused = Refused(f"a key in it has the type {type(key).__name__}; use a str")
                flat.refusals.append((prefix.removesuffix("/"), refused))
                continue
            key = f"{prefix}{key}"
        elif type(key) is not str:
            flat.refusals.append((key, Refused(f"the key has the type {type(key).__name__}; use a str")))
            continue
        if type(value) is dict or issubclass(type(value), Mapping):
            if id(value) in above or len(above) >= NESTED_MAPPINGS:
                flat.refusals.append((key, Refused(f"mappings are nested more than {NESTED_MAPPINGS} times")))
            else:
                _add(flat, value, f"{key}/", (*above, id(value)))
            continue
        if key in flat.values:
            flat.collisions.append(key)
        elif len(flat.values) >= METRIC_NAMES:
            flat.refusals.append((key, Refused(f"the mapping has more than {METRIC_NAMES:,} values")))
            return
        flat.values[key] = value


def _pairs(values: Mapping[Any, Any], prefix: str, refusals: list[tuple[object, Refused]]) -> list[tuple[Any, Any]]:
    """Return the key-value pairs that can be read. For each pair that cannot be read, append a refusal to `refusals`."""
    pairs: list[tuple[Any, Any]] = []
    try:
        if isinstance(values, dict):
            return list(values.items())  # in one call, because another thread may change the dictionary
        for key in values:
            try:
                pairs.append((key, values[key]))
            except Exception as error:
                name = f"{prefix}{key}" if prefix else key
                refusals.append((name, Refused(f"cannot read its value ({describe(error)})")))
    except Exception as error:  # the mapping's own code may raise anything
        name = prefix.removesuffix("/") or type(values).__name__
        refusals.append((name, Refused(f"cannot read its keys ({describe(error)})")))
    return pairs
