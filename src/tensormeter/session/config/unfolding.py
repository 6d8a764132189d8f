"""Detection of objects that hold named values or lists of values.

Nothing here imports a library. Objects are recognized by the protocols that their types follow.
"""

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import islice
from types import MemberDescriptorType, ModuleType
from typing import Any

__all__ = ["Pair", "has_slots", "is_collection", "items_of", "pairs_of", "public_attributes"]

Pair = tuple[Any, Callable[[], Any]]
"""A key, and a function that reads its value. The function may raise anything."""


def pairs_of(value: Any, most: int) -> list[Pair] | None:
    """Return up to `most` named values of an object, or None if it is not a mapping and has no declared fields.

    Mappings of any type count, and so do instances of dataclasses, named tuples, attrs, pydantic and msgspec classes,
    namespaces such as `argparse.Namespace`, the flags of absl, and objects with a method `to_dict`.

    May raise any exception of the object's own code.
    """
    kind = type(value)
    if isinstance(value, Mapping):
        return _mapping_pairs(value, most)
    if isinstance(value, type):
        return None
    if (names := _field_names(value, kind)) is not None:
        return [(name, partial(getattr, value, name)) for name in names]
    if hasattr(kind, "flag_values_dict"):  # absl
        return _mapping_pairs(value.flag_values_dict(), most)
    if hasattr(kind, "to_dict") and not hasattr(kind, "shape"):  # configurations of transformers and ml_collections
        with contextlib.suppress(Exception):  # the method may require arguments
            converted = value.to_dict()
            if isinstance(converted, Mapping):
                return _mapping_pairs(converted, most)
    if hasattr(kind, "keys") and hasattr(kind, "__getitem__"):
        return [(key, partial(operator.getitem, value, key)) for key in islice(value.keys(), most)]
    if any(base.__name__ in ("Namespace", "SimpleNamespace") for base in kind.__mro__):
        return _mapping_pairs(vars(value), most)
    return None


def public_attributes(value: Any) -> list[Pair]:
    """Return the public attributes of a plain object, class or module that are not functions, including inherited ones.

    A class that is defined in the body of the value's class counts as a mapping of its public attributes.
    """
    owner = value if isinstance(value, type) else type(value)
    found: dict[str, Any] = {}
    if not isinstance(value, ModuleType):
        for base in reversed(owner.__mro__[:-1]):
            found.update(vars(base))
    found.update(getattr(value, "__dict__", {}))
    if not isinstance(value, type):
        found |= {name: getattr(value, name) for name in found if _is_filled_slot(value, found[name])}
    return [
        (name, partial(_section if isinstance(held, type) else _same, held))
        for name, held in found.items()
        if not name.startswith("_") and _is_value(held, owner)
    ]


def has_slots(kind: type) -> bool:
    """Return whether instances of a class hold values in slots."""
    return any(vars(base).get("__slots__") for base in kind.__mro__[:-1])


def _is_filled_slot(value: Any, held: Any) -> bool:
    return isinstance(held, MemberDescriptorType) and hasattr(value, held.__name__)


def _is_value(held: Any, owner: type) -> bool:
    """Return whether an attribute is a value or a section of a configuration, rather than code."""
    if isinstance(held, type):
        names = (f"{base.__qualname__}.{held.__name__}" for base in owner.__mro__[:-1])
        return held.__qualname__ in names
    return not callable(held) and not isinstance(held, ModuleType) and not hasattr(type(held), "__get__")


def _section(section: type) -> dict[str, Any]:
    return {name: read() for name, read in public_attributes(section)}


def is_collection(value: Any) -> bool:
    """Return whether a value is a list, set, range, view or another collection whose items can be read more than once."""
    return isinstance(value, Collection) and not isinstance(value, Iterator)


def items_of(value: Collection[Any]) -> list[Any]:
    """Return the items of a collection. Sets are sorted if their items can be compared.

    May raise any exception of the object's own code.
    """
    items = list(value)
    if not isinstance(value, AbstractSet):
        return items
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=str)


def _mapping_pairs(mapping: Mapping[Any, Any], most: int) -> list[Pair]:
    if isinstance(mapping, dict):
        return [(key, partial(_same, held)) for key, held in islice(list(mapping.items()), most)]
    return [(key, partial(operator.getitem, mapping, key)) for key in islice(mapping, most)]


def _same(value: Any) -> Any:
    return value


def _field_names(value: Any, kind: type) -> list[str] | None:
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return list(kind._fields)
    if hasattr(kind, "__attrs_attrs__"):
        return [attribute.name for attribute in kind.__attrs_attrs__]
    if hasattr(kind, "__struct_fields__"):
        return list(kind.__struct_fields__)
    if isinstance(fields := getattr(kind, "model_fields", None), Mapping):  # pydantic 2
        return [*fields, *(getattr(value, "model_extra", None) or {})]
    if isinstance(fields := getattr(kind, "__fields__", None), Mapping):  # pydantic 1
        return list(fields)
    return None
