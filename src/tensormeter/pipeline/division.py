"""Dividing a request that its receiver refuses, until what is refused stands alone.

A receiver answers for a whole request, also when it objects to one metric in it. Which one that is has to be found out by sending
parts. The order of the attempts matters, because what is accepted on the way stays, and many receivers refuse whatever is older than
what they have. Prometheus, for one, notes the time of each resource, and takes no earlier point of any metric of it afterwards. So

1. kinds under suspicion go last: those that were refused before, and those that the receiver names;
2. then delta temporality is separated from the rest, and then gauges from other types, since receivers refuse types;
3. then earlier rows go before later ones;
4. the metrics of a single row are separated, and then the points of a single metric.

The ids of the parts begin with that of the request. Parts by kind are remembered by whoever sends them, since suspicion changes;
everything else follows from the request, so another agent makes the same parts.
"""

import gzip
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.exporter import Request
from tensormeter.pipeline.contents import halves, keep_metrics, pack

__all__ = ["Kind", "Piece", "divide", "divide_by_kind", "divide_in_halves", "piece_of", "resume"]

_TEMPORALITY: Final = {1: "delta ", 2: "cumulative "}


@dataclass(frozen=True, order=True)
class Kind:
    """What receivers take or refuse.

    Attributes:
        name: Name of a metric, or of an event.
        type: Temporality and type of the metric, for people; "" for events.
    """

    name: str
    type: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.type})" if self.type else self.name


@dataclass(frozen=True)
class Piece:
    """A request, or a part of one.

    Attributes:
        request: The part, under an id of its own that begins with that of the request.
        items: How many points or records of each kind it has.
        rows: How many different times its points have; 0 for log records.
    """

    request: Request
    items: Mapping[Kind, int]
    rows: int


def piece_of(request: Request) -> Piece:
    """A request with what is in it.

    Raises:
        DecodeError, OSError: The body is not what it claims to be.
    """
    body = gzip.decompress(request.body)
    items: Counter[Kind] = Counter()
    times = set()
    if request.signal == "logs":
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
            for scope in resource.scope_logs:
                items.update(Kind(record.event_name or "log record") for record in scope.log_records)
    else:
        for metric in _metrics(ExportMetricsServiceRequest.FromString(body)):
            data = metric.WhichOneof("data")
            if data is not None:
                points = getattr(metric, data).data_points
                items[_kind(metric)] += len(points)
                times |= {point.time_unix_nano for point in points}
    return Piece(request, items, len(times))


def divide(piece: Piece, suspects: Collection[Kind] = (), reason: str = "") -> tuple[list[Piece], list[Kind]] | None:
    """Two pieces with what is in one, in the order in which they should be sent; None if it is a single item.

    Args:
        piece: The piece.
        suspects: Kinds that the receiver has refused before.
        reason: What the receiver said.

    Returns:
        The pieces, and the kinds that went into the second one; no kinds if the pieces follow from the piece alone.

    Raises:
        DecodeError, OSError: The body is not what it claims to be.
    """
    if piece.request.signal == "metrics":
        second = _second(piece, suspects, reason)
        if second:
            return divide_by_kind(piece, second), second
    pieces = divide_in_halves(piece)
    return None if pieces is None else (pieces, [])


def divide_in_halves(piece: Piece) -> list[Piece] | None:
    """Earlier and later rows; of a single one, or of log records, the first and second half. None if it is a single item.

    Raises:
        DecodeError, OSError: The body is not what it claims to be.
    """
    pair = halves(piece.request)
    return None if pair is None else [piece_of(half) for half in pair]


def divide_by_kind(piece: Piece, second: Collection[Kind]) -> list[Piece]:
    """What is of other kinds than the given ones, and what is of those.

    Raises:
        DecodeError, OSError: The body is not what it claims to be.
    """
    body = gzip.decompress(piece.request.body)
    pieces = []
    for number, kinds in enumerate((piece.items.keys() - set(second), piece.items.keys() & set(second))):
        if kinds:
            message = ExportMetricsServiceRequest.FromString(body)
            keep_metrics(message, partial(_is_of, kinds))
            items = sum(piece.items[kind] for kind in kinds)
            pieces.append(piece_of(Request(f"{piece.request.id}.k{number}", "metrics", pack(message), items)))
    return pieces


def resume(piece: Piece, done: Collection[str], divided: Mapping[str, Collection[Kind]]) -> list[Piece]:
    """The pieces of a request that are left, after another agent has sent some.

    Args:
        piece: The request.
        done: Ids of the pieces that were accepted or set aside.
        divided: Ids of the pieces that were divided, with the kinds that went into the second part; no kinds for halves.

    Raises:
        DecodeError, OSError: The body is not what it claims to be.
    """
    name = piece.request.id
    if name in done:
        return []
    if name not in divided:
        return [piece]
    kinds = divided[name]
    parts = divide_by_kind(piece, kinds) if kinds else divide_in_halves(piece)
    return [left for part in parts for left in resume(part, done, divided)] if parts else [piece]


def _second(piece: Piece, suspects: Collection[Kind], reason: str) -> list[Kind]:
    """The kinds that go into a piece of their own; none if kinds are not to be separated."""
    kinds = list(piece.items)
    named = {kind for kind in kinds if re.search(rf"(?<![\w./-]){re.escape(kind.name)}(?![\w./-])", reason)}
    choices = [
        [kind for kind in kinds if kind in suspects],
        [kind for kind in kinds if kind in named],
        [kind for kind in kinds if kind.type.startswith(_TEMPORALITY[1])],
        [kind for kind in kinds if kind.type != "gauge"],
    ]
    if piece.rows <= 1:
        choices.append(kinds[len(kinds) // 2 :])
    return next((chosen for chosen in choices if 0 < len(chosen) < len(kinds)), [])


def _is_of(kinds: Collection[Kind], metric: Any) -> bool:
    return _kind(metric) in kinds


def _metrics(message: Any) -> Iterator[Any]:
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            yield from scope.metrics


def _kind(metric: Any) -> Kind:
    data = metric.WhichOneof("data")
    temporality = _TEMPORALITY.get(getattr(getattr(metric, data), "aggregation_temporality", 0), "")
    return Kind(metric.name, f"{temporality}{data.replace('_', ' ')}")
