"""Dividing a request that its receiver refuses, until what is refused stands alone.

A receiver answers for a whole request, also when it objects to one metric in it. So the request goes in pieces: metrics apart
from metrics, then the points of one metric, then log records. Pieces keep the order of time, since many receivers refuse a
point that is older than the last one. Which pieces there are follows from the request alone, and so do their ids, so that
another agent goes on with the same ones.
"""

import gzip
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.exporter import Request
from tensormeter.pipeline.contents import halves, keep_metrics, pack

__all__ = ["Piece", "divide", "divide_again", "piece_of"]

_TEMPORALITY: Final = {1: "delta ", 2: "cumulative "}


@dataclass(frozen=True)
class Piece:
    """A request, or a part of one.

    Attributes:
        request: The part, under an id of its own that begins with that of the request.
        items: How many points or records of each kind it has. A kind is a metric's name and type, or an event's name.
    """

    request: Request
    items: Mapping[str, int]


def piece_of(request: Request) -> Piece:
    """A request with what is in it.

    Raises:
        DecodeError, OSError: The body is not what it claims to be.
    """
    body = gzip.decompress(request.body)
    items: Counter[str] = Counter()
    if request.signal == "logs":
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
            for scope in resource.scope_logs:
                items.update(record.event_name or "log record" for record in scope.log_records)
    else:
        for metric in _metrics(ExportMetricsServiceRequest.FromString(body)):
            kind = metric.WhichOneof("data")
            if kind is not None:
                items[_kind(metric)] += len(getattr(metric, kind).data_points)
    return Piece(request, items)


def divide(piece: Piece, known: Collection[str] = ()) -> list[Piece] | None:
    """Smaller pieces with what is in one, in order; None if it is a single item.

    Args:
        piece: The piece.
        known: Kinds that the receiver is known to refuse. They are separated from the others first.

    Raises:
        DecodeError, OSError: The body is not what it claims to be.
    """
    kinds = piece.items.keys()
    if piece.request.signal == "metrics" and len(kinds) > 1:
        refused = kinds & set(known)
        if refused and refused != kinds:
            return _by_kind(piece, refused, "k")
        return _by_kind(piece, set(list(kinds)[len(kinds) // 2 :]), "m")
    found = halves(piece.request)
    return None if found is None else [piece_of(half) for half in found]


def divide_again(piece: Piece, done: Collection[str], known: Collection[str]) -> list[Piece]:
    """The pieces of a request that are left, after some have been sent by an earlier agent.

    Args:
        piece: The request.
        done: Ids of the pieces that were accepted or set aside.
        known: As it was for `divide` then.

    Raises:
        DecodeError, OSError: The body is not what it claims to be.
    """
    name = piece.request.id
    if name in done:
        return []
    begun = next((one for one in sorted(done) if one.startswith(f"{name}.")), None)
    if begun is None:
        return [piece]
    how = begun.removeprefix(f"{name}.")[0]
    if how == "k":
        parts: list[Piece] | None = _by_kind(piece, piece.items.keys() & set(known), "k")
    elif how == "m":
        parts = divide(piece)
    else:
        pair = halves(piece.request)
        parts = None if pair is None else [piece_of(half) for half in pair]
    return [left for part in parts or [piece] for left in (divide_again(part, done, known) if parts else [part])]


def _by_kind(piece: Piece, second: Collection[str], letter: str) -> list[Piece]:
    """What is of other kinds than the given ones, and what is of those."""
    body = gzip.decompress(piece.request.body)
    pieces = []
    for number, wanted in enumerate((piece.items.keys() - set(second), set(second))):
        message = ExportMetricsServiceRequest.FromString(body)
        keep_metrics(message, partial(_is_of, wanted))
        items = {kind: count for kind, count in piece.items.items() if kind in wanted}
        name = f"{piece.request.id}.{letter}{number}"
        pieces.append(Piece(Request(name, "metrics", pack(message), sum(items.values())), items))
    return [one for one in pieces if one.items]


def _is_of(kinds: Collection[str], metric: Any) -> bool:
    return _kind(metric) in kinds


def _metrics(message: Any) -> Iterator[Any]:
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            yield from scope.metrics


def _kind(metric: Any) -> str:
    """A metric's name and type, for people too: receivers refuse temporalities and types."""
    data = metric.WhichOneof("data")
    temporality = _TEMPORALITY.get(getattr(getattr(metric, data), "aggregation_temporality", 0), "")
    return f"{metric.name} ({temporality}{data.replace('_', ' ')})"
