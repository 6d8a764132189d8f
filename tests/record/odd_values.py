"""Values, keys and mappings whose own code fails."""

from collections.abc import Mapping


class Raises:
    """Raises for every operation, as lazily computed objects do."""

    def fail(self, *_):
        raise RuntimeError("not ready")

    __float__ = __index__ = __int__ = __bool__ = __len__ = __iter__ = __repr__ = __str__ = __format__ = __eq__ = fail
    __hash__ = object.__hash__
    __class__ = property(fail)


class BadWords(Exception):
    """Cannot be shown."""

    def __str__(self):
        raise ValueError("no words")


class RaisesBadWords(float):
    def __float__(self):
        raise BadWords


class OddKey:
    def __repr__(self):
        raise RuntimeError("not ready")


class Lazy(Mapping):
    """A mapping that raises for some of its values."""

    def __init__(self, values, broken):
        self._values, self._broken = values, broken

    def __getitem__(self, key):
        if key in self._broken:
            raise KeyError(key)
        return self._values[key]

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)
