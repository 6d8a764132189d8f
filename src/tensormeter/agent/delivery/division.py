"""Dividing a request that its receiver refuses, until the refused items are alone.

A receiver answers for a whole request, even if it refuses only one metric in it. The agent finds that metric by sending parts. The order
of the attempts matters, because parts that are accepted on the way stay, and many receivers refuse points that are older than those
that they have. Prometheus, for example, stores the time of each resource, and accepts no earlier point of any of its metrics. So

1. kinds that were refused before go last;
2. then delta temporality is separated from the rest, and then gauges from other types, since receivers refuse types;
3. then earlier rows go before later ones;
4. the metrics of a single row are separated, those that the receiver names first, and then the points of a single metric.

If all points of a kind are refused, trying each of them would take two requests a point. So where that seems to be the case, the latest
item is tried alone (`divide_off`): if it is refused as well, the rest is quarantined.

A destination that is not OTLP finds the step of a value in the same request. For it the steps of a row are in each of its parts, and
do not count as items.

The ids of the parts begin with that of the request. The sender remembers how a part was divided, since the suspects change. The parts
follow from that and the request, so another agent makes the same ones.
"""

import dataclasses
import gzip
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.agent.spool.request_editing import halves, keep_metrics, keep_points, pack
from tensormeter.exporter import Request
from tensormeter.otlp.batch import STEP_METRIC

__all__ = ["Division", "Kind", "Piece", "divide", "divide_off", "halve", "piece_of", "resume"]

_TEMPORALITY: Final = {1: "delta ", 2: "cumulative "}


@dataclass(frozen=True, order=True)
class Kind:
    """Kind of item that receivers accept or refuse.

    Attributes:
        name: Name of a metric, or of an event.
        type: Temporality and type of the metric, for people; "" for events.
    """

    name: str
    type: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.type})" if self.type else self.name


_STEPS: Final = Kind(STEP_METRIC, "gauge")


@dataclass(frozen=True)
class Piece:
    """A request, or a part of one.

    Attributes:
        request: The part, under an id that begins with that of the request.
        items: Number of its points or records of each kind.
        rows: Number of different times of its points; 0 for log records.
        keeps_steps: Whether steps stay with the values, and do not count as items.
    """

    request: Request
    items: Mapping[Kind, int]
    rows: int
    keeps_steps: bool = False


@dataclass(frozen=True)
class Division:
    """Describes how a piece was divided.

    Attributes:
        kinds: The kinds that went into the second part; none if it was divided in halves. If `off`, the one whose latest item is the first
            part.
        off: Whether a single item was divided off.
    """

    kinds: tuple[Kind, ...] = ()
    off: bool = False


def piece_of(request: Request, *, keeps_steps: bool = False) -> Piece:
    """Count the contents of a request.

    Args:
        request: The request.
        keeps_steps: Whether steps stay with the values, and do not count as items.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    body = gzip.decompress(request.body)
    items: Counter[Kind] = Counter()
    times: dict[Kind, set[int]] = {}
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
                times.setdefault(_kind(metric), set()).update(point.time_unix_nano for point in points)
    if keeps_steps and len(items) > 1:
        items.pop(_STEPS, None)
        times.pop(_STEPS, None)
    return Piece(request, items, len(set().union(*times.values())), keeps_steps and request.signal == "metrics")


def divide(piece: Piece, suspects: Collection[Kind] = (), reason: str = "") -> tuple[list[Piece], Division] | None:
    """Divide a piece in two, in the order in which they should be sent; None if it is a single item.

    Args:
        piece: The piece.
        suspects: Kinds that the receiver has refused before.
        reason: Reason given by the receiver.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    division = Division(tuple(_second(piece, suspects, reason))) if piece.request.signal == "metrics" else Division()
    pieces = _parts(piece, division)
    return None if pieces is None else (pieces, division)


def halve(piece: Piece) -> list[Piece] | None:
    """Divide a piece in two, by rows if it has several; None if it is a single item.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    return _parts(piece, Division())


def divide_off(piece: Piece, kind: Kind) -> tuple[list[Piece], Division] | None:
    """Return the latest item of a kind, and everything else; None if there is nothing else.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    division = Division((kind,), off=True)
    pieces = _parts(piece, division)
    return None if pieces is None else (pieces, division)


def resume(piece: Piece, done: Collection[str], divisions: Mapping[str, Division]) -> list[Piece]:
    """Return the pieces of a request that are left, after another agent has sent some.

    Args:
        piece: The request.
        done: Ids of the pieces that were accepted or quarantined.
        divisions: How pieces were divided, by their ids.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    name = piece.request.id
    if name in done:
        return []
    parts = _parts(piece, divisions[name]) if name in divisions else None
    return [left for part in parts for left in resume(part, done, divisions)] if parts else [piece]


def _parts(piece: Piece, division: Division) -> list[Piece] | None:
    if sum(piece.items.values()) < 2:
        return None
    by_rows = not division.kinds and piece.rows > 1
    if piece.keeps_steps and not by_rows and _STEPS not in piece.items:
        steps = ExportMetricsServiceRequest.FromString(gzip.decompress(piece.request.body))
        keep_metrics(steps, partial(_is_of, {_STEPS}))
        bare = ExportMetricsServiceRequest.FromString(gzip.decompress(piece.request.body))
        keep_metrics(bare, lambda metric: _kind(metric) != _STEPS)
        items = sum(piece.items.values())
        parts = _parts(
            Piece(dataclasses.replace(piece.request, body=pack(bare), items=items), piece.items, piece.rows), division
        )
        return parts and [_with_steps(part, steps) for part in parts]
    if division.off:
        return _off(piece, division.kinds[0])
    if division.kinds:
        return _by_kind(piece, division.kinds)
    pair = halves(piece.request)
    return pair and [piece_of(half, keeps_steps=piece.keeps_steps) for half in pair]


def _with_steps(part: Piece, steps: Any) -> Piece:
    """Return a part with the steps of its rows."""
    message = ExportMetricsServiceRequest.FromString(gzip.decompress(part.request.body))
    times = {
        point.time_unix_nano
        for metric in _metrics(message)
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    }
    own = type(steps)()
    own.CopyFrom(steps)
    keep_points(own, lambda point: point.time_unix_nano in times)
    message.MergeFrom(own)
    return Piece(dataclasses.replace(part.request, body=pack(message)), part.items, part.rows, keeps_steps=True)


def _by_kind(piece: Piece, second: Collection[Kind]) -> list[Piece]:
    """Return the items of other kinds than the given ones, and those of the given kinds."""
    body = gzip.decompress(piece.request.body)
    pieces = []
    for number, kinds in enumerate((piece.items.keys() - set(second), piece.items.keys() & set(second))):
        if kinds:
            message = ExportMetricsServiceRequest.FromString(body)
            keep_metrics(message, partial(_is_of, kinds))
            pieces.append(_piece(piece, f"k{number}", message, sum(piece.items[kind] for kind in kinds)))
    return pieces


def _off(piece: Piece, kind: Kind) -> list[Piece]:
    body = gzip.decompress(piece.request.body)
    first, second = ExportMetricsServiceRequest.FromString(body), ExportMetricsServiceRequest.FromString(body)
    places = [
        (point.time_unix_nano, number, place)
        for number, metric in enumerate(_metrics(second))
        if metric.WhichOneof("data") and _kind(metric) == kind
        for place, point in enumerate(getattr(metric, metric.WhichOneof("data")).data_points)
    ]
    _, number, place = max(places)
    for index, metric in enumerate(_metrics(first)):
        points = getattr(metric, metric.WhichOneof("data")).data_points if metric.WhichOneof("data") else []
        if index == number:
            del points[place + 1 :]
            del points[:place]
        else:
            del points[:]
    latest = list(_metrics(second))[number]
    del getattr(latest, latest.WhichOneof("data")).data_points[place]
    for message in (first, second):
        keep_metrics(message, _has_points)
    return [_piece(piece, "p0", first, 1), _piece(piece, "p1", second, sum(piece.items.values()) - 1)]


def _piece(piece: Piece, name: str, message: Any, items: int) -> Piece:
    return piece_of(Request(f"{piece.request.id}.{name}", "metrics", pack(message), items))


def _second(piece: Piece, suspects: Collection[Kind], reason: str) -> list[Kind]:
    """Return the kinds that go into a separate piece; none if kinds are not to be separated."""
    kinds = list(piece.items)
    choices = [
        [kind for kind in kinds if kind in suspects],
        [kind for kind in kinds if kind.type.startswith(_TEMPORALITY[1])],
        [kind for kind in kinds if kind.type != "gauge"],
    ]
    if piece.rows <= 1:
        choices.append([kind for kind in kinds if not _is_named(kind, reason)])
        choices.append(kinds[len(kinds) // 2 :])
    return next((chosen for chosen in choices if 0 < len(chosen) < len(kinds)), [])


def _is_named(kind: Kind, reason: str) -> bool:
    return re.search(rf"(?<![\w./-]){re.escape(kind.name)}(?![\w./-])", reason) is not None


def _is_of(kinds: Collection[Kind], metric: Any) -> bool:
    return _kind(metric) in kinds


def _has_points(metric: Any) -> bool:
    return bool(getattr(metric, metric.WhichOneof("data")).data_points)


def _metrics(message: Any) -> Iterator[Any]:
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            yield from scope.metrics


def _kind(metric: Any) -> Kind:
    data = metric.WhichOneof("data")
    temporality = _TEMPORALITY.get(getattr(getattr(metric, data), "aggregation_temporality", 0), "")
    return Kind(metric.name, f"{temporality}{data.replace('_', ' ')}")
