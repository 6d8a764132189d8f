"""Series as binary columns: what a browser, or NumPy, takes in without parsing numbers.

A little-endian u32 with the length of the header, the header in JSON, padding to a multiple of 8, then the arrays; arrays that
are equal stand there once.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.api.params import encode
from tensormeter.server.api.schemas import variant_json
from tensormeter.server.query.points.raw import RawSeries
from tensormeter.server.query.points.sampled import PointsResult
from tensormeter.server.store import Points

__all__ = ["COLUMNS", "encode_columns", "encode_full_columns"]

COLUMNS: Final = "application/vnd.tensormeter.columns"

_NAMES: Final = {"f": "f64", "i": "i64", "u": "u8"}


class _Arrays:
    """The arrays that follow a header: each begins at a multiple of 8."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._known: dict[bytes, int] = {}
        self._places: list[dict[str, Any]] = []
        self._size = 0

    def add(self, array: NDArray[Any]) -> dict[str, Any]:
        """Where the array will be; to be put into the header."""
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        # Series that were logged together have the same x, which travels once.
        offset = self._known.setdefault(data, self._size)
        place = {"offset": offset, "length": len(array), "type": _NAMES[array.dtype.kind]}
        self._places.append(place)
        if offset == self._size and data:
            padding = -len(data) % 8
            self._parts += [data, b"\0" * padding]
            self._size += len(data) + padding
        return place

    def encode(self, document: Any) -> list[bytes]:
        """The whole answer, in parts: offsets count from its start."""
        # The header's length depends on the digits of the offsets: they are laid out for a start that is large enough.
        self._move(1 << 40)
        start = -(-(4 + len(encode(document))) // 8) * 8
        self._move(start - (1 << 40))
        header = encode(document)
        padding = b" " * (start - 4 - len(header))
        return [len(header).to_bytes(4, "little") + header + padding, *self._parts]

    def _move(self, by: int) -> None:
        for place in self._places:
            place["offset"] += by


def encode_columns(result: PointsResult, *, reset: bool, check: Check = no_check) -> list[bytes]:
    """The document of `/query` with arrays apart, in parts."""
    arrays = _Arrays()
    series = []
    for one in result.series:
        check()
        about = {"run": one.run, "process": one.process, "attempt": one.attempt, "metric": one.metric}
        rest = variant_json(one) | {"attributes": one.attributes, "total": one.total}
        columns = {"x": arrays.add(one.x), "y": arrays.add(one.y)}
        if len(one.gaps):
            columns["gaps"] = arrays.add(one.gaps)
        series.append(about | rest | columns)
    rest = {"damaged": result.damaged} if result.damaged else {}
    return arrays.encode({"series": series, "cursor": result.cursor, "reset": reset} | rest)


def encode_full_columns(metric: str, x: str, found: Sequence[RawSeries], check: Check = no_check) -> list[bytes]:
    """The document of `/series` with arrays apart, in parts: `value` is the bits of float64, or int64 where `integers` is 1."""
    arrays = _Arrays()
    series = []
    for one in found:
        check()
        points = one.points
        assert isinstance(points, Points)
        document: dict[str, Any] = {"process": one.process, "attempt": one.attempt} | variant_json(one)
        document["attributes"] = one.attributes
        document |= {"time": arrays.add(points.times), "step": arrays.add(one.steps), "value": arrays.add(points.words)}
        if not one.stepped.all():
            document["stepped"] = arrays.add(one.stepped.view(np.uint8))
        if points.integers.any():
            document["integers"] = arrays.add(points.integers.view(np.uint8))
        if len(one.gaps):
            document["gaps"] = arrays.add(one.gaps)
        series.append(document)
    return arrays.encode({"metric": metric, "x": x, "series": series})
