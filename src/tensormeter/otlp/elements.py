"""Limits on the number of elements in an OTLP request. Elements are counted in the encoded request, before it is parsed.

A compressed request of a few kilobytes can contain millions of empty messages. Each message has only two bytes, but costs far
more to parse. This module walks through the protobuf wire format and stops at the first exceeded limit, so its own cost is also
bounded. Points that share a layout are counted by column, because `decode` reads them with NumPy: a million points take a
fraction of a second.

The functions are thread-safe, do not block and keep no state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.errors import EncodingError
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.decode import find_fixed_points
from tensormeter.otlp.fixed_layout import Field
from tensormeter.otlp.varint import encode_varint

__all__ = ["COLUMN", "MAX_ELEMENTS", "MAX_QUANTILES", "TooManyElementsError", "check_logs", "check_metrics"]

MAX_ELEMENTS: Final[Mapping[str, int]] = {
    "resources": 10_000,
    "scopes": 20_000,
    "metrics": 51_000,
    "fields of resources and scopes": 150_000,
    "separate points": 51_000,
    "log records": 20_000,
    "buckets and quantiles": 2_000_000,
    "bytes of text": 16 << 20,
    "bytes of images and other binary values": 40 << 20,
    "fields": 1_500_000,
}
"""Maximum number of elements of each kind in one request.

Points with the same series and layout are read as one column, which counts as `COLUMN` separate points. Any other point or
distribution counts as one separate point. Attributes, values, exemplars, strings, numbers and unknown fields count as fields.
"""

COLUMN: Final = 3
"""Number of separate points that a column counts as. Storing and compacting a column costs about as much as three points."""

MAX_QUANTILES: Final = 10_000
"""Maximum number of quantiles in one summary. The store accepts only about a third as many, because it limits a summary to
65,536 bytes. Decoding needs a separate limit, because it takes much more memory than storing."""

_KINDS: Final = {
    "ResourceMetrics": "resources",
    "ResourceLogs": "resources",
    "ScopeMetrics": "scopes",
    "ScopeLogs": "scopes",
    "Metric": "metrics",
    "NumberDataPoint": "separate points",
    "HistogramDataPoint": "separate points",
    "ExponentialHistogramDataPoint": "separate points",
    "SummaryDataPoint": "separate points",
    "ValueAtQuantile": "buckets and quantiles",
    "LogRecord": "log records",
}
"""Kinds of elements by message name. All other messages count only as fields."""

_LEN: Final = 2
_PACKED_VARINTS: Final = frozenset({FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT64,
                                    FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_BOOL, FieldDescriptor.CPPTYPE_ENUM})  # fmt: skip
_FIXED_SIZES: Final = {
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_FLOAT: 4,
}
_NO_POINTS: Final[Sequence[tuple[int, int]]] = ()
_CONTINUED: Final = bytes(range(0x80, 0x100))
"""Values that the bytes of a varint can have, apart from its last byte."""


class TooManyElementsError(EncodingError):
    """Raised when a request contains too many elements of one kind. The message names the kind and the limit."""


@dataclass(eq=False)
class _Type:
    """The properties of a field's type that matter for counting.

    Attributes:
        kind: Index of the kind of element in `_NAMES`, or -1 for none.
        fields: Types of the message's length-delimited fields, by tag.
        packed: Size of one packed number in bytes; 1 for varints, 0 for messages, -1 for text and binary values.
        divided: Whether `decode` builds a list of the message's fields before it parses them.
    """

    kind: int
    fields: "dict[int, _Type]"
    packed: int = 0
    divided: bool = False


_NAMES: Final = tuple(MAX_ELEMENTS)
_FIELDS: Final = _NAMES.index("fields")
_POINTS: Final = _NAMES.index("separate points")
_BUCKETS: Final = _NAMES.index("buckets and quantiles")
_TEXT: Final = _NAMES.index("bytes of text")
_BINARY: Final = _NAMES.index("bytes of images and other binary values")
_PARTS: Final = _NAMES.index("fields of resources and scopes")
_DIVIDED: Final = frozenset(
    {
        "ExportMetricsServiceRequest",
        "ExportLogsServiceRequest",
        "ResourceMetrics",
        "ResourceLogs",
        "ScopeMetrics",
        "ScopeLogs",
    }
)
"""Messages for which `decode` builds a list of the fields before it parses them."""


def check_metrics(body: bytes, check: Check = no_check) -> None:
    """Reject an `ExportMetricsServiceRequest` that exceeds a limit.

    Args:
        body: Encoded message.
        check: Function that is called at regular intervals. It can raise an error to stop the count.

    Raises:
        TooManyElementsError: The number of elements of one kind exceeds its limit in `MAX_ELEMENTS`.
        EncodingError: The bytes are not a protobuf message.
    """
    _walk(body, ExportMetricsServiceRequest.DESCRIPTOR, check)


def check_logs(body: bytes, check: Check = no_check) -> None:
    """Reject an `ExportLogsServiceRequest` that exceeds a limit. The arguments and errors are those of `check_metrics`."""
    _walk(body, ExportLogsServiceRequest.DESCRIPTOR, check)


@cache
def _type_of(descriptor: Descriptor) -> _Type:
    root = _message_type(descriptor)
    _fill(root, descriptor, {descriptor.full_name: root})
    return root


def _message_type(descriptor: Descriptor) -> _Type:
    name = _KINDS.get(descriptor.name)
    return _Type(-1 if name is None else _NAMES.index(name), {}, divided=descriptor.name in _DIVIDED)


def _fill(into: _Type, descriptor: Descriptor, known: dict[str, _Type]) -> None:
    for field in descriptor.fields:
        tag = field.number << 3 | _LEN
        if field.message_type is not None:
            message = field.message_type
            child = known.get(message.full_name)
            if child is None:
                child = known[message.full_name] = _message_type(message)
                _fill(child, message, known)
            into.fields[tag] = child
        elif field.type == FieldDescriptor.TYPE_STRING:
            into.fields[tag] = _Type(_TEXT, {}, -1)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            into.fields[tag] = _Type(_BINARY, {}, -1)
        elif field.is_repeated and field.cpp_type in _PACKED_VARINTS | {
            FieldDescriptor.CPPTYPE_DOUBLE,
            FieldDescriptor.CPPTYPE_FLOAT,
        }:
            into.fields[tag] = _Type(_BUCKETS, {}, _FIXED_SIZES.get(field.type, 1))


def _walk(body: bytes, root: Descriptor, check: Check) -> None:
    try:
        _Walk(body, root, check).run()
    except IndexError:
        raise EncodingError(f"not a protobuf {root.name}: it ends within a field") from None


class _Walk:
    """A count of the elements in one request."""

    def __init__(self, body: bytes, root: Descriptor, check: Check) -> None:
        self._body = body
        self._view = memoryview(body)
        self._root = root
        self._metric = _metric_type(root)
        self._check = check
        self._counts = [0] * len(_NAMES)

    def run(self) -> None:
        """Count the elements. Raises the same errors as `check_metrics`, or IndexError if the body ends within a field."""
        body, counts, metric = self._body, self._counts, self._metric
        most = [MAX_ELEMENTS[name] for name in _NAMES]
        most_fields = most[_FIELDS]
        total = 0
        quantiles = 0
        column, firsts = -1, _NO_POINTS
        at, end, kind = 0, len(body), _type_of(self._root)
        outer: list[tuple[int, int, _Type]] = []
        while True:
            if at >= end:
                if at > end:
                    raise self._malformed("a message ends within a field")
                if not outer:
                    return
                at, end, kind = outer.pop()
                continue
            total += 1
            if total > most_fields:
                raise _too_many(_FIELDS)
            if kind.divided:
                counts[_PARTS] += 1
                if counts[_PARTS] > most[_PARTS]:
                    raise _too_many(_PARTS)
            if not total & 0xFFF:
                self._check()
            tag = body[at]
            at += 1
            if tag >= 0x80:
                tag, at = self._long_varint(at - 1)
            wire = tag & 7
            if wire == _LEN:
                size = body[at]
                at += 1
                if size >= 0x80:
                    size, at = self._long_varint(at - 1)
                after = at + size
                if after > end:
                    raise self._malformed("a field is longer than its message")
                child = kind.fields.get(tag)
                if child is None:
                    at = after
                    continue
                index = child.kind
                if child.packed:
                    counts[index] += size if child.packed < 0 else self._packed(at, after, child.packed)
                elif index >= 0:
                    counts[index] += 1
                    if index == _POINTS:
                        quantiles = 0
                    elif index == _BUCKETS:
                        quantiles += 1
                        if quantiles > MAX_QUANTILES:
                            raise TooManyElementsError(
                                f"a summary has more than {MAX_QUANTILES} quantiles; send fewer quantiles"
                            )
                if index >= 0 and counts[index] > most[index]:
                    raise _too_many(index)
                if child.packed or not size:
                    at = after
                    continue
                outer.append((after, end, kind))
                kind, end = child, after
                if child is metric:
                    column, firsts = self._columns(at, end)
                elif at == column:  # only the first point of each column is examined
                    outer += ((first, last, child) for first, last in firsts)
                    counts[_POINTS] += (COLUMN - 1) * len(firsts)
                    if counts[_POINTS] > most[_POINTS]:
                        raise _too_many(_POINTS)
                    at = end
            elif wire == 0:
                if body[at] >= 0x80:
                    _, at = self._long_varint(at)
                else:
                    at += 1
            elif wire == 1:
                at += 8
            elif wire == 5:
                at += 4
            else:  # groups, which OTLP does not use
                raise self._malformed(f"a field has the invalid wire type {wire}")

    def _columns(self, begin: int, end: int) -> tuple[int, Sequence[tuple[int, int]]]:
        """Return the offset of a metric's points, and the start and end offsets of each column's first point.

        The offset of the points is -1 if `decode` does not read them as columns.
        """
        fixed = find_fixed_points(self._view, Field(0, _LEN, begin, begin, end))
        if fixed is None:
            return -1, _NO_POINTS
        return fixed.data.content, [
            (first, first + 1 + len(encode_varint(len(points.first))) + len(points.first))
            for first, points in fixed.groups
        ]

    def _packed(self, at: int, after: int, size: int) -> int:
        if size > 1:
            return (after - at) // size
        return len(self._body[at:after].translate(None, _CONTINUED))

    def _long_varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while shift < 70:
            byte = self._body[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise self._malformed("a number is longer than ten bytes")

    def _malformed(self, reason: str) -> EncodingError:
        return EncodingError(f"not a protobuf {self._root.name}: {reason}")


def _metric_type(root: Descriptor) -> _Type | None:
    """Return the type of the `Metric` messages in a request, or None if such requests contain no metrics."""
    waiting = [_type_of(root)]
    seen: list[_Type] = []
    while waiting:
        kind = waiting.pop()
        if kind.kind == _NAMES.index("metrics"):
            return kind
        if all(kind is not other for other in seen):
            seen.append(kind)
            waiting += kind.fields.values()
    return None


def _too_many(index: int) -> TooManyElementsError:
    name = _NAMES[index]
    return TooManyElementsError(f"the request has more than {MAX_ELEMENTS[name]} {name}; send smaller batches")
