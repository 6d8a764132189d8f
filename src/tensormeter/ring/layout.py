"""Streams, columns and layouts, which define the meaning of a row's words. The dictionary stores them as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from tensormeter.ring.format import ITEM_CODE_BITS, ITEM_STREAM_SHIFT

__all__ = ["Column", "Items", "Layout", "Stream", "StreamEntry", "item_header", "items_bytes", "items_in", "row_bytes"]


StreamEntry = Mapping[str, Any] | str
"""A stream as a JSON value for the dictionary. A plain gauge is only its name."""


@dataclass(frozen=True)
class Stream:
    """A metric with one attribute set. OpenTelemetry's data model calls this a metric stream.

    Attributes:
        name: Name of the metric.
        kind: Kind of the stream. Each value of a `gauge` is a point. The agent aggregates the values of `counter`,
            `up_down_counter`, `histogram` and `exponential` streams. The values of `observable_counter` and
            `observable_up_down_counter` streams are already totals. The rows of a `distribution` stream contain bucket counts
            (see `tensormeter.ring.histogram_buckets`).
        unit: UCUM unit, or "".
        description: Description of the metric, or "".
        attributes: Attributes as (key, value) pairs; the values are JSON values.
        scope: Instrumentation scope as (name, version, schema URL, attributes as pairs), or () for tensormeter's own scope.
        bounds: Bucket bounds of a `histogram` stream, or (maximum number of buckets per side, maximum scale) of an
            `exponential` stream.
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
        """Return the stream as a JSON object. Omit fields with default values."""
        return {"name": self.name} | {
            field.name: value
            for field in fields(self)
            if field.name != "name" and (value := getattr(self, field.name)) != field.default
        }

    def to_entry(self) -> "StreamEntry":
        """Return the stream as a JSON value for the dictionary. To save space, a plain gauge is only its name."""
        entry = self.to_json()
        return self.name if len(entry) == 1 else entry

    @classmethod
    def from_entry(cls, entry: "StreamEntry") -> "Stream":
        """Construct a stream from the JSON value that `to_entry` returned."""
        return cls(entry) if isinstance(entry, str) else cls.from_json(entry)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Stream":
        """Construct a stream from the JSON object that `to_json` returned."""
        return cls(**{key: _tuples(value) for key, value in entry.items()})


@dataclass(frozen=True)
class Column:
    """A column of a row. It holds one value or one part of a distribution.

    Attributes:
        stream: Stream of the column's values.
        code: Code of the storage format (see `tensormeter.ring`).
        words: Number of words in the column.
    """

    stream: Stream
    code: str
    words: int = 1


@dataclass(frozen=True)
class Layout:
    """The columns of a row.

    Attributes:
        id: Number of the layout, from 1 to MAX_LAYOUT, stored in the low 16 bits of the mark.
        columns: Columns, in the order of their words in a row.
        stepped: Whether the rows have a step. Rows from instruments have none.
    """

    id: int
    columns: tuple[Column, ...]
    stepped: bool = True

    @classmethod
    def of_gauges(cls, id: int, names: Iterable[str], codes: str) -> "Layout":
        """Construct the layout for a row of plain gauges."""
        return cls(id, tuple(Column(Stream(name), code) for name, code in zip(names, codes, strict=True)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Metric names of the columns."""
        return tuple(column.stream.name for column in self.columns)

    @cached_property
    def codes(self) -> str:
        """Storage codes of the columns, one character per column."""
        return "".join(column.code for column in self.columns)

    @cached_property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return row_bytes(sum(column.words for column in self.columns))

    def to_json(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return the layout as a JSON object.

        Args:
            numbers: Numbers of the columns' streams in the ring's dictionary.
        """
        entry: dict[str, Any] = {"id": self.id, "codes": self.codes, "streams": list(numbers)}
        if any(column.words != 1 for column in self.columns):
            entry["words"] = [column.words for column in self.columns]
        return entry if self.stepped else entry | {"stepped": False}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], streams: Mapping[int, Stream]) -> "Layout":
        """Construct a layout from the JSON object that `to_json` returned.

        Args:
            entry: JSON object.
            streams: Streams by number.

        Raises:
            KeyError: `streams` lacks the stream of a column.
        """
        words = entry.get("words", [1] * len(entry["streams"]))
        columns = tuple(map(Column, [streams[number] for number in entry["streams"]], entry["codes"], words))
        return cls(entry["id"], columns, entry.get("stepped", True))


@dataclass(frozen=True)
class Items:
    """The columns of a row that describes its own columns, with the layout `ITEMS` or `ITEMS_UNSTEPPED`.

    Attributes:
        headers: One word per column, as returned by `item_header`.
        stepped: Whether the row has a step.
    """

    headers: tuple[int, ...]
    stepped: bool = True


def item_header(number: int, code: str, words: int = 1) -> int:
    """Return the header word of a column in a row that describes its own columns.

    Args:
        number: Number of the column's stream in the ring's dictionary.
        code: Code of the storage format.
        words: Number of words in the column, up to MAX_ITEM_WORDS.
    """
    return number << ITEM_STREAM_SHIFT | words << ITEM_CODE_BITS | ord(code)


def row_bytes(words: int) -> int:
    """Return the size in bytes of a row whose values take `words` words."""
    return 8 * (words + 4)


def items_bytes(items: int, words: int) -> int:
    """Return the size in bytes of a row that describes its own columns.

    Args:
        items: Number of columns.
        words: Number of words that the values take.
    """
    return 8 * (items + words + 5)


def items_in(size: int) -> int:
    """Return how many columns of one word a row that describes its own columns can have in `size` bytes."""
    return (size // 8 - 5) // 2


def _tuples(value: Any) -> Any:
    """Convert a list and all nested lists to tuples, so that a stream is hashable."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
