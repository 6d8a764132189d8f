"""The summary of a run, as W&B's scripts read and change it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tensormeter.wandb.flat_rows import readable

__all__ = ["Summary"]


class Summary:
    """A mapping with attribute access: the results that the script has stated, and the last numbers and texts that it has logged.

    The server computes the summary of metrics itself, so only changes are recorded. Numbers that were logged as tensors are not
    in this mapping, because reading them would wait for the device. The name of a nested mapping that was logged returns this
    mapping.
    """

    _latest: Mapping[str, Any]
    _stated: dict[str, Any]
    _record: Callable[[Mapping[str, Any]], None]

    def __init__(self, latest: Mapping[str, Any], record: Callable[[Mapping[str, Any]], None]) -> None:
        """
        Args:
            latest: Last logged numbers and texts by name, which the owner keeps up to date.
            record: Function that records results.
        """
        object.__setattr__(self, "_latest", latest)
        object.__setattr__(self, "_stated", {})
        object.__setattr__(self, "_record", record)

    def update(self, d: Any = (), **named: Any) -> None:
        """Add or replace results."""
        values = {**dict(d), **named}
        self._stated.update({**values, **readable(values)})
        self._record(values)

    def _values(self) -> dict[str, Any]:
        return {**self._latest, **self._stated}

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def keys(self) -> list[str]:
        return list(self._values())

    def values(self) -> list[Any]:
        return list(self._values().values())

    def items(self) -> list[tuple[str, Any]]:
        return list(self._values().items())

    def __getitem__(self, key: str) -> Any:
        values = self._values()
        if key in values:
            return values[key]
        children = {name[len(key) + 1 :].partition(".")[0] for name in values if name.startswith(f"{key}.")}
        if not children:
            raise KeyError(
                f"{key!r} is not in wandb.summary; numbers that are logged as tensors cannot be read from it"
            )
        return {child: self[f"{key}.{child}"] for child in sorted(children)}

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        self._stated.pop(key)
        self._record({key: None})

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"there is no {key!r} in wandb.summary") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __delattr__(self, key: str) -> None:
        del self[key]

    def __contains__(self, key: object) -> bool:
        return key in self._latest or key in self._stated

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __repr__(self) -> str:
        return str(self._values())
