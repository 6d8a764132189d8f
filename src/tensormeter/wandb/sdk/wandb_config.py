"""The configuration of a run, as W&B's scripts read and change it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.limits import NESTED_MAPPINGS
from tensormeter.record.media.array_copy import is_array
from tensormeter.record.warn_once import describe, text_of
from tensormeter.session.config.unfolding import pairs_of
from tensormeter.wandb.errors import UsageError
from tensormeter.wandb.notices import warn_once

__all__ = ["Config", "read_config"]

_MOST_VALUES: Final = 1 << 20
_JSON: Final = frozenset({str, int, float, bool, type(None)})

_LISTED_ELEMENTS: Final = 32
"""Number of elements up to which W&B makes a list of an array; of a larger one it makes text."""


class Config:
    """A mapping with attribute access. Each change is recorded.

    Unlike `tensormeter.Run.config`, it returns secrets as they were given, because scripts use it to hold their arguments. Only
    the record is masked. Nested mappings are plain dicts, and a change within one is not recorded, as in W&B. Values are the
    JSON values that W&B makes of them, except for tensors, which stay as they are because reading them may wait.
    """

    _own: dict[str, Any]
    _record: Callable[[Mapping[str, Any]], None]
    _earlier: Callable[[], Mapping[str, Any]] | None

    def __init__(
        self,
        values: Any = None,
        record: Callable[[Mapping[str, Any]], None] = lambda values: None,
        earlier: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """
        Args:
            values: Initial values (see `read_config`), which are not passed to `record`.
            record: Function that records values that were added or replaced.
            earlier: Function that returns the values of earlier attempts. It is called before values are first read or changed.
        """
        object.__setattr__(self, "_own", {})
        object.__setattr__(self, "_record", record)
        object.__setattr__(self, "_earlier", None)
        self._keep(read_config(values))
        object.__setattr__(self, "_earlier", earlier)

    @property
    def _items(self) -> dict[str, Any]:
        if self._earlier is not None:
            earlier = self._earlier()
            object.__setattr__(self, "_earlier", None)
            self._keep(earlier)
            self._record(earlier)  # because the record of this attempt replaces the earlier one
        return self._own

    def update(self, d: Any = None, allow_val_change: bool | None = None, **named: Any) -> None:
        """Add or replace values. Values may always change, so `allow_val_change` has no effect.

        Args:
            d: Mapping, namespace or other object with named values, or path of a YAML or JSON file.
            allow_val_change: Accepted for W&B's sake.
            named: Further values by name.
        """
        values = {**read_config(d), **named}
        self._keep(values)
        self._record(values)

    def setdefaults(self, d: Any) -> None:
        """Add values whose names are not in the configuration yet."""
        self.update({key: value for key, value in read_config(d).items() if key not in self._items})

    def _keep(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            try:
                self._items[key] = _plain(value)
            except Exception:  # a value that contains itself, or whose own code raises anything, stays as it is
                self._items[key] = value

    def get(self, key: str, default: Any = None) -> Any:
        return self._items.get(key, default)

    def keys(self) -> list[str]:
        return [key for key in self._items if not key.startswith("_")]

    def values(self) -> list[Any]:
        return [self._items[key] for key in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(key, self._items[key]) for key in self.keys()]

    def as_dict(self) -> dict[str, Any]:
        """Return a copy."""
        return dict(self._items)

    def persist(self) -> None:
        """Do nothing, because each change is recorded when it is made."""

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._keep({str(key): value})
        self._record({str(key): value})

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        try:
            return self._items[key]
        except KeyError:
            raise AttributeError(f"there is no {key!r} in wandb.config") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return str(self.as_dict())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values without the run."""
        return Config, (self.as_dict(),)


def _plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Return what W&B's configuration returns for a value. The rules are those of `wandb.util.json_friendly_val`."""
    kind = type(value)
    if kind in _JSON:
        return value
    if id(value) in above or len(above) > NESTED_MAPPINGS:
        return text_of(value)
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.item() if value.size == 1 else value.tolist() if value.size <= _LISTED_ELEMENTS else str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, (*above, id(value))) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, (*above, id(value))) for item in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, date):
        return value.isoformat()
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name, None), (*above, id(value))) for field in fields(value)}
    return value if type(value).__module__ == "builtins" or is_array(value) else text_of(value)


def read_config(values: Any, exclude: Any = None, include: Any = None) -> dict[str, Any]:
    """Return named values as a dict.

    Args:
        values: Mapping, namespace, dataclass instance, absl flags or another object with named values, path of a YAML or JSON
            file, or None.
        exclude: Names to leave out.
        include: Names to keep.

    Raises:
        UsageError: The values have no names, or the file cannot be read.
    """
    if exclude and include:
        raise UsageError("config_exclude_keys and config_include_keys exclude each other; pass only one of them")
    if values is None or (isinstance(values, str | list | tuple) and not values):
        return {}
    if isinstance(values, Config):
        pairs = values.as_dict()
    elif isinstance(values, str | Path):
        pairs = _read_file(Path(values))
    elif isinstance(values, dict):
        pairs = values
    else:
        pairs = _read_object(values)
    named = {str(key): value for key, value in pairs.items()}
    if include:
        named = {key: value for key, value in named.items() if key in include}
    return {key: value for key, value in named.items() if key not in exclude} if exclude else named


def _read_object(values: Any) -> dict[Any, Any]:
    pairs = pairs_of(values, _MOST_VALUES)
    if pairs is not None:
        read = {}
        for key, value in pairs:
            try:
                read[key] = value()
            except Exception as error:  # the object's own code may raise anything, for example for a missing value
                warn_once(("config", key), "wandb.config: %r is left out: %s", key, describe(error))
        return read
    if hasattr(values, "__dict__"):
        return {key: value for key, value in vars(values).items() if not key.startswith("_")}
    raise UsageError(f"config: {type(values).__name__} has no named values; pass a dict")


def _read_file(path: Path) -> dict[str, Any]:
    """Read a configuration file. W&B's own files hold each value as `{"desc": ..., "value": ...}`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"config: cannot read {str(path)!r}: {error.strerror}; pass a dict or an existing file"
        ) from None
    document = _parse(path, text)
    if not isinstance(document, dict):
        raise UsageError(f"config: {str(path)!r} does not contain names and values")
    document.pop("wandb_version", None)
    document.pop("_wandb", None)
    return {
        str(key): value["value"] if isinstance(value, dict) and "value" in value else value
        for key, value in document.items()
    }


def _parse(path: Path, text: str) -> Any:
    if path.suffix == ".json":
        import json

        try:
            return json.loads(text)
        except ValueError as error:
            raise UsageError(f"config: {str(path)!r} is not valid JSON: {error}") from None
    try:
        import yaml
    except ImportError:
        raise UsageError(
            f"config: reading {str(path)!r} needs PyYAML; run pip install pyyaml, or pass a dict"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"config: {str(path)!r} is not valid YAML: {error}") from None
