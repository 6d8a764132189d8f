"""Rows of a W&B history, as columns of points.

W&B stores each value of a row as a message with a key and JSON. Most values are numbers, and parsing a message for each of
them takes most of the time of an import. The encoded key of a number is therefore looked up as bytes, and only values
with an unknown key, or of another type, are parsed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from tensormeter.conventions.limits import METRIC_NAMES
from tensormeter.errors import EncodingError
from tensormeter.importers.bounded_parsing import parse_json, parse_message
from tensormeter.importers.point_block import Column, PointBlock
from tensormeter.importers.repeated_texts import RepeatedTexts
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.tally import Tally
from tensormeter.importers.wandb.media import RunMedia
from tensormeter.importers.wandb.messages import HistoryItem

__all__ = ["History", "item_path", "nested_document"]

_VALUE_TAG: Final = b"\x82\x01"
"""Tag of the field `value_json`: number 16, length-delimited."""

_TYPE_KEYS: Final = (b"\x12\x05_type", b'"_type"')
"""Parts of the encoded items of an object with a `_type`, in W&B's new and old form."""

_FIRST_OF_NUMBERS, _LAST_OF_NUMBERS = ord("-"), ord("9")
_DEEPEST: Final = 32
_SECONDS: Final = 1_000_000_000
_INTERNAL: Final = frozenset({"_runtime", "_step", "_timestamp", "_wandb"})
"""Keys of W&B's own values. The run time follows from the other times."""
_INVALID: Final = 1 << 63
_CONSTANTS: Final = {b"NaN", b"Infinity", b"-Infinity"}


class History:
    """The history of one run. Call `add` for each row, in order, and `flush` at the end. Not thread-safe.

    Attributes:
        last_step: Step of the latest row, or -1.
        last_time: Time of the latest row in nanoseconds since the Unix epoch.
        names: Names of the metrics.
    """

    def __init__(self, requests: RunRequests, tally: Tally, media: RunMedia, started: int) -> None:
        self.last_step = -1
        self.last_time = started
        self._requests = requests
        self._tally = tally
        self._media = media
        self._texts = RepeatedTexts(requests)
        self._block = PointBlock(requests, has_steps=True)
        self._columns: dict[bytes, Column] = {}
        """Column by the encoded key."""
        self._step, self._time = Column("_step"), Column("_timestamp")
        self._special = {"_step": self._step, "_timestamp": self._time}

    @property
    def names(self) -> set[str]:
        return set(self._block.columns)

    def add(self, history: Any, data: bytes) -> None:
        """Add a row: the field `history` of a `messages.Record`, and the encoded record."""
        items: Sequence[bytes] = history.item
        columns = self._columns
        row = self._block.row
        others: list[bytes] = []
        is_plain = not any(key in data for key in _TYPE_KEYS)
        if is_plain:
            for item in items:
                head, _, tail = item.rpartition(_VALUE_TAG)
                column = columns.get(head)
                if (
                    column is not None
                    and len(tail) > 1
                    and tail[0] == len(tail) - 1
                    and _FIRST_OF_NUMBERS <= tail[1] <= _LAST_OF_NUMBERS
                ):
                    column.rows.append(row)
                    column.texts.append(tail[1:])
                else:
                    others.append(item)
        else:
            others = list(items)
        document: dict[str, Any] = {}
        for item in others:
            self._add_item(item, document, row, keeps_columns=is_plain)
        step = self._taken(self._step, int, int(history.step.num))
        time = self._taken(self._time, _moment, self.last_time)
        self.last_step, self.last_time = step, time
        self._add_document(document, "", step, time, row, 0)
        self._block.end_row(step, time, len(items))

    def flush(self) -> None:
        """Pass on all points and texts."""
        self._block.flush()
        self._texts.flush()

    def _taken(self, column: Column, convert: Callable[[bytes], int], default: int) -> int:
        """Remove the step or time of a row from its column and return it; `default` if there is none, or an invalid one."""
        texts, column.texts, column.rows = column.texts, [], []
        if texts:
            try:
                number = convert(texts[-1])
            except (ValueError, OverflowError):
                number = _INVALID
            if abs(number) < _INVALID:
                return number
            self._tally.leave_out("invalid steps and times, which the rest of their row replaces")
        return default

    def _add_item(self, item: bytes, document: dict[str, Any], row: int, *, keeps_columns: bool) -> None:
        """Add a value that is not a number with a known key: to a column, or to the nested document of its row."""
        try:
            message = parse_message(HistoryItem, item)
        except DecodeError:
            self._tally.leave_out("damaged values in the history")
            return
        path = item_path(message)
        text = message.value_json.encode()
        name = ".".join(path)
        special = self._special.get(name)
        if _is_number(text) and (special is not None or keeps_columns):
            head, _, tail = item.rpartition(_VALUE_TAG)
            if special is None and name in _INTERNAL:
                return
            if special is None and len(self._block.columns) >= METRIC_NAMES and name not in self._block.columns:
                self._tally.leave_out(f"points of metrics beyond the limit of {METRIC_NAMES:,} metrics")
                return
            column = special or self._block.column(name)
            if len(tail) > 1 and tail[0] == len(tail) - 1 and len(self._columns) < METRIC_NAMES:
                self._columns[head] = column
            column.rows.append(row)
            column.texts.append(text)
            return
        if path[0] in _INTERNAL:
            return
        try:
            _place(document, path, parse_json(text))
        except EncodingError:
            self._tally.leave_out("values in the history that are not JSON")

    def _add_document(self, values: Mapping[str, Any], prefix: str, step: int, time: int, row: int, depth: int) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                if isinstance(value.get("_type"), str):
                    self._media.add(name, step, time, value)
                elif depth < _DEEPEST:
                    self._add_document(value, f"{name}.", step, time, row, depth + 1)
                else:
                    self._tally.leave_out("values in the history that are nested too deeply")
            elif isinstance(value, bool | int | float):
                if len(self._block.columns) >= METRIC_NAMES and name not in self._block.columns:
                    self._tally.leave_out(f"points of metrics beyond the limit of {METRIC_NAMES:,} metrics")
                    continue
                column = self._block.column(name)
                column.rows.append(row)
                column.texts.append(str(int(value) if isinstance(value, bool) else value).encode())
            elif isinstance(value, str):
                self._texts.add(name, step, time, value)
            elif value is None:
                self._tally.leave_out("null values in the history")
            elif (
                isinstance(value, list)
                and value
                and all(isinstance(entry, Mapping) and "_type" in entry for entry in value)
            ):
                for entry in value:
                    self._media.add(name, step, time, entry)
            else:
                self._tally.leave_out("lists in the history")


def item_path(item: Any) -> list[str]:
    """Return the keys under which an item of a history, configuration or summary is nested."""
    return list(item.nested_key) or [item.key]


def nested_document(items: Sequence[Any], document: dict[str, Any], tally: Tally, noun: str) -> None:
    """Add items of a configuration or summary to a nested document.

    Args:
        items: Items with a key and JSON.
        document: Document to change.
        tally: Counts of the import.
        noun: Noun phrase for items that are not JSON.
    """
    for item in items:
        try:
            value = parse_json(item.value_json)
        except EncodingError:
            tally.leave_out(noun)
            continue
        _place(document, item_path(item), value)


def _place(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    place = document
    for key in path[:-1][:_DEEPEST]:
        inner = place.get(key)
        if not isinstance(inner, dict):
            inner = place[key] = {}
        place = inner
    place[path[-1]] = value


def _moment(text: bytes) -> int:
    time = round(float(text) * _SECONDS)
    return time if time > 0 else _INVALID


def _is_number(text: bytes) -> bool:
    if text in _CONSTANTS:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return b"_" not in text
