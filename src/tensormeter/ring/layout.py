"""What the words of a row mean: streams, columns and layouts, as they stand in the ring's dictionary."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

__all__ = ["Column", "Layout", "Stream", "row_bytes"]


@dataclass(frozen=True)
class Stream:
    """A metric with one attribute set; OpenTelemetry's data model calls this a metric stream.

    Attributes:
        name: The metric's name.
        kind: `gauge`: each value is a point. The values of the others are aggregated by the agent: `counter`,
            `up_down_counter`, `histogram`, `exponential`; and, as they are totals already, `observable_counter` and
            `observable_up_down_counter`.
        unit: UCUM unit, or "".
        description: For people, or "".
        attributes: (key, value) pairs; JSON values.
        scope: The instrumentation scope as (name, version, schema URL, attributes as pairs), or () for tensormeter's own.
        bounds: Of the buckets of a `histogram`; or (most buckets of a side, highest scale) of an `exponential` one.
        record_min_max: Whether the points of a histogram have a minimum and a maximum.
    """

    name: str
    kind: str = "gauge"
    unit: str = ""
    description: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()
    scope: tuple[Any, ...] = ()
    bounds: tuple[float, ...] = ()
    record_min_max: bool = True

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name} | {
            field.name: value
            for field in fields(self)
            if field.name != "name" and (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Stream":
        return cls(**{key: _tuples(value) for key, value in entry.items()})


@dataclass(frozen=True)
class Column:
    """One value of a row.

    Attributes:
        stream: What it is a value of.
        code: How it is stored.
        words: How many words it takes.
    """

    stream: Stream
    code: str
    words: int = 1


@dataclass(frozen=True)
class Layout:
    """What the words of a row mean.

    Attributes:
        id: 1 to MAX_LAYOUT; the low 16 bits of the mark.
        columns: In the order of their words.
        stepped: Whether the step means anything; not in rows of instruments.
    """

    id: int
    columns: tuple[Column, ...]
    stepped: bool = True

    @classmethod
    def of_gauges(cls, id: int, names: Iterable[str], codes: str) -> "Layout":
        """The layout of a row of plain gauges."""
        return cls(id, tuple(Column(Stream(name), code) for name, code in zip(names, codes, strict=True)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(column.stream.name for column in self.columns)

    @cached_property
    def codes(self) -> str:
        return "".join(column.code for column in self.columns)

    @cached_property
    def row_bytes(self) -> int:
        return row_bytes(sum(column.words for column in self.columns))

    def to_json(self) -> dict[str, Any]:
        """Compact, because the dictionary's space is bounded: a plain gauge is its name."""
        streams = [column.stream.to_json() for column in self.columns]
        entry: dict[str, Any] = {
            "id": self.id,
            "codes": self.codes,
            "streams": [stream["name"] if len(stream) == 1 else stream for stream in streams],
        }
        if any(column.words != 1 for column in self.columns):
            entry["words"] = [column.words for column in self.columns]
        return entry if self.stepped else entry | {"stepped": False}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Layout":
        streams = [
            Stream(stream) if isinstance(stream, str) else Stream.from_json(stream) for stream in entry["streams"]
        ]
        words = entry.get("words", [1] * len(streams))
        columns = tuple(map(Column, streams, entry["codes"], words))
        return cls(entry["id"], columns, entry.get("stepped", True))


def row_bytes(words: int) -> int:
    """Bytes of a row whose values take so many words."""
    return 8 * (words + 4)


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, all the way down, so that what holds them can be a key."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
