"""Binary responses with series as columns, which browsers and NumPy can read without parsing numbers.

A response consists of the header's length as a little-endian u32, the header as JSON, padding to a multiple of 8, and
the arrays. Equal arrays are written only once.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.api.documents import variant_fields
from tensormeter.server.api.responses import encode
from tensormeter.server.api.schemas import (
    ArrayPlace,
    FullArrays,
    ManyColumns,
    MetricColumns,
    QueryColumns,
    SampledArrays,
)
from tensormeter.server.query.points.raw import RawSeries
from tensormeter.server.query.points.sampled import PointsResult
from tensormeter.server.store import Points

__all__ = ["COLUMNS", "encode_columns", "encode_full_columns"]

COLUMNS: Final = "application/vnd.tensormeter.columns"
"""Media type of binary responses."""

_TYPES: Final[Mapping[str, Literal["f64", "i64", "u8"]]] = {"f": "f64", "i": "i64", "u": "u8"}


class _Arrays:
    """Arrays that follow the header of a binary response. The offset of each array is a multiple of 8."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._offsets: dict[bytes, int] = {}
        self._places: list[ArrayPlace] = []
        self._size = 0

    def add(self, array: NDArray[Any]) -> ArrayPlace:
        """Append an array, and return its place for the header. Equal arrays get the same place in the response."""
        is_little = sys.byteorder == "little" or array.dtype.itemsize == 1
        data = (array if is_little else array.astype(array.dtype.newbyteorder("<"))).tobytes()
        # Series that were logged together share the same x, which is written only once.
        offset = self._offsets.setdefault(data, self._size)
        place = ArrayPlace(offset, len(array), _TYPES[array.dtype.kind])
        self._places.append(place)
        if offset == self._size and data:
            padding = -len(data) % 8
            self._parts += [data, b"\0" * padding]
            self._size += len(data) + padding
        return place

    def encode(self, document: QueryColumns | MetricColumns | ManyColumns) -> list[bytes]:
        """Return the whole response in parts. Make all offsets relative to the start of the response."""
        # The header's length depends on the number of digits in the offsets, so measure it with very large offsets first.
        self._move(1 << 40)
        start = -(-(4 + len(encode(document))) // 8) * 8
        self._move(start - (1 << 40))
        header = encode(document)
        padding = b" " * (start - 4 - len(header))
        return [len(header).to_bytes(4, "little") + header + padding, *self._parts]

    def _move(self, distance: int) -> None:
        for place in self._places:
            place.offset += distance


def encode_columns(result: PointsResult, *, reset: bool, check: Check = no_check) -> list[bytes]:
    """Return the binary response to a query, in parts."""
    arrays = _Arrays()
    documents = []
    for series in result.series:
        check()
        documents.append(
            SampledArrays(
                run=series.run,
                process=series.process,
                attempt=series.attempt,
                metric=series.metric,
                **variant_fields(series),
                attributes=series.attributes,
                total=series.total,
                child=series.child or UNSET,
                x=arrays.add(series.x),
                y=arrays.add(series.y),
                gaps=arrays.add(series.gaps) if len(series.gaps) else UNSET,
            )
        )
    damaged = result.damaged or UNSET
    return arrays.encode(QueryColumns(series=documents, cursor=result.cursor, reset=reset, damaged=damaged))


def encode_full_columns(
    metric: str | None, x: Literal["step", "time"], all_series: Sequence[RawSeries], check: Check = no_check
) -> list[bytes]:
    """Return the binary response with every point of a metric, or of several metrics if `metric` is None, in parts."""
    arrays = _Arrays()
    documents = []
    for series in all_series:
        check()
        points = series.points
        assert isinstance(points, Points)
        documents.append(
            FullArrays(
                metric=series.metric if metric is None else UNSET,
                process=series.process,
                attempt=series.attempt,
                **variant_fields(series),
                attributes=series.attributes,
                time=arrays.add(points.times),
                step=arrays.add(series.steps),
                value=arrays.add(points.words),
                stepped=UNSET if series.stepped.all() else arrays.add(series.stepped.view(np.uint8)),
                integers=arrays.add(points.integers.view(np.uint8)) if points.integers.any() else UNSET,
                gaps=arrays.add(series.gaps) if len(series.gaps) else UNSET,
            )
        )
    return arrays.encode(ManyColumns(x, documents) if metric is None else MetricColumns(metric, x, documents))
