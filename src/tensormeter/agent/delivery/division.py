"""Division of a request that its receiver refuses, until each refused item is alone.

A receiver responds to a whole request, even if it refuses only one metric in it. The agent finds that metric by sending
parts. The order of the attempts matters: accepted parts cannot be taken back, and many receivers refuse points that are
older than the points they have. Prometheus, for example, stores the time of each resource and accepts no earlier point
for any metric of that resource. Therefore:

1. kinds that were refused before go last;
2. next, delta temporality is separated from the rest, then gauges from other types, as receivers refuse whole types;
3. next, earlier rows go before later ones;
4. finally, the metrics of a single row are separated, starting with those that the receiver names, and then the
   points of a single metric.

If all points of a kind are refused, trying each of them would take two requests per point. When this seems to be the
case, the kind's latest item is tried alone (`divide_off`). If it is refused as well, the rest is quarantined.

Destinations other than OTLP read a value's step from the same request. For them, each part contains the steps of its
rows, and steps do not count as items.

The IDs of the parts begin with the request's ID. The agent stores how each part was divided, because the kinds that are
suspected change over time. Another agent derives the same parts from this record and the request.
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

from tensormeter.agent.spool.request_editing import pack
from tensormeter.exporter import Request
from tensormeter.otlp import halving
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.point_selection import keep_metrics, keep_points

__all__ = ["Division", "Kind", "Piece", "divide", "divide_off", "halve", "piece_of", "resume"]

_TEMPORALITY: Final = {1: "delta ", 2: "cumulative "}


@dataclass(frozen=True, order=True)
class Kind:
    """Kind of item that receivers accept or refuse.

    Attributes:
        name: Name of a metric or an event.
        type: Temporality and type of the metric, in readable form; empty for events.
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
        request: Request to send. The ID of a part begins with the ID of the original request.
        items: Number of points or records of each kind.
        rows: Number of distinct times of the points; 0 for log records.
        keeps_steps: Whether steps stay with their values and do not count as items.
    """

    request: Request
    items: Mapping[Kind, int]
    rows: int
    keeps_steps: bool = False


@dataclass(frozen=True)
class Division:
    """Record of how a piece was divided.

    Attributes:
        kinds: Kinds in the second part; empty if the piece was halved. If `off` is true, the kind whose latest item is
            the first part.
        off: Whether a single item was split off.
    """

    kinds: tuple[Kind, ...] = ()
    off: bool = False


def piece_of(request: Request, *, keeps_steps: bool = False) -> Piece:
    """Return a request as a piece, and count its contents.

    Args:
        request: Request to count.
        keeps_steps: Value of `Piece.keeps_steps`.

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
    """Divide a piece in two, in the order in which the parts should be sent; return None for a single item.

    Args:
        piece: Piece to divide.
        suspects: Kinds that the receiver has refused before.
        reason: Reason that the receiver gave.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    division = Division(tuple(_second(piece, suspects, reason))) if piece.request.signal == "metrics" else Division()
    pieces = _parts(piece, division)
    return None if pieces is None else (pieces, division)


def halve(piece: Piece) -> list[Piece] | None:
    """Divide a piece in two, by rows if it has several; return None for a single item.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    return _parts(piece, Division())


def divide_off(piece: Piece, kind: Kind) -> tuple[list[Piece], Division] | None:
    """Split off the latest item of a kind from everything else; return None if there is nothing else.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    division = Division((kind,), off=True)
    pieces = _parts(piece, division)
    return None if pieces is None else (pieces, division)


def resume(piece: Piece, done: Collection[str], divisions: Mapping[str, Division]) -> list[Piece]:
    """Return the remaining pieces of a request after another agent has sent some.

    Args:
        piece: Whole request.
        done: IDs of the pieces that were accepted or quarantined.
        divisions: Record of how pieces were divided, by piece ID.

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
    request = piece.request
    pair = halving.halve(request.signal, gzip.decompress(request.body))
    return pair and [
        piece_of(
            Request(f"{request.id}.{number}", request.signal, pack(half.message), half.items),
            keeps_steps=piece.keeps_steps,
        )
        for number, half in enumerate(pair)
    ]


def _with_steps(part: Piece, steps: Any) -> Piece:
    """Return a part together with the steps of its rows."""
    message = ExportMetricsServiceRequest.FromString(gzip.decompress(part.request.body))
    times = {
        point.time_unix_nano
        for metric in _metrics(message)
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    }
    own = type(steps)()
    own.CopyFrom(steps)
    keep_points(own, lambda _, point: point.time_unix_nano in times)
    message.MergeFrom(own)
    return Piece(dataclasses.replace(part.request, body=pack(message)), part.items, part.rows, keeps_steps=True)


def _by_kind(piece: Piece, second: Collection[Kind]) -> list[Piece]:
    """Return two pieces: the items of all other kinds, and then the items of the given kinds."""
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
    """Return the kinds to move into a separate piece; empty if kinds should stay together."""
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
