"""Series as binary columns: what a browser takes in without parsing numbers.

A little-endian u32 with the length of the header, the header in JSON, padding to a multiple of 8, then the arrays.
"""

from typing import Any, Final

import numpy as np

from tensormeter.server.api.request import encode
from tensormeter.server.query.points import PointsResult

__all__ = ["COLUMNS", "encode_columns"]

COLUMNS: Final = "application/vnd.tensormeter.columns"


def encode_columns(result: PointsResult, *, reset: bool) -> bytes:
    """The document of `/query` with arrays apart: offsets count from the start of the answer."""
    arrays = [array for one in result.series for array in (one.x, one.y)]
    # The header's length depends on the digits of the offsets: they are laid out for a start that is large enough.
    start = _aligned(4 + len(_header(result, reset, 1 << 40)))
    header = _header(result, reset, start)
    parts = [len(header).to_bytes(4, "little"), header, b" " * (start - 4 - len(header))]
    parts += [np.ascontiguousarray(array, "<f8").tobytes() for array in arrays]
    return b"".join(parts)


def _header(result: PointsResult, reset: bool, start: int) -> bytes:
    series: list[dict[str, Any]] = []
    offset = start
    for one in result.series:
        x, y = ({"offset": offset + 8 * len(one.x) * i, "length": len(one.x), "type": "f64"} for i in range(2))
        offset += 16 * len(one.x)
        about = {"run": one.run, "process": one.process, "metric": one.metric, "kind": one.kind}
        series.append(about | {"attributes": one.attributes, "total": one.total, "x": x, "y": y})
    return encode({"series": series, "cursor": result.cursor, "reset": reset})


def _aligned(offset: int) -> int:
    return -(-offset // 8) * 8
