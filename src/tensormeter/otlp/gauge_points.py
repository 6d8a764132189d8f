"""Points of many gauges that have few points each, as arrays, and their encoding.

NumPy writes all metrics, headers and points at once, so no Python code runs for each gauge. The constant bytes of the
last requests are kept. A row of the same gauges then takes three array operations for its times and values.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import Batch, Gauge, Scope, Series
from tensormeter.otlp.gauge_catalog import GaugeCatalog, Pieces

__all__ = ["GaugeEncoder", "GaugePoints", "WideBatch"]

# Tags: field number << 3 | wire type (1: 64 bits, 2: length-delimited).
_SCOPE_METRICS_METRICS: Final = 2 << 3 | 2
_METRIC_GAUGE: Final = 5 << 3 | 2
_GAUGE_POINTS: Final = 1 << 3 | 2
_POINT_TIME: Final = 3 << 3 | 1
_POINT_AS_DOUBLE: Final = 4 << 3 | 1
_POINT_AS_INT: Final = 6 << 3 | 1

_POINT_FIELDS: Final = 18
"""Bytes of a point's time and value, with their tags."""

_MOST_TEMPLATES: Final = 16
_MOST_TEMPLATE_BYTES: Final = 8 << 20
"""Maximum number and total bytes of the templates that an encoder keeps."""


@dataclass(frozen=True, eq=False)
class GaugePoints:
    """The points of k gauges: n points in total, those of a gauge one after another and in time order.

    Attributes:
        encoder: Encoder with the catalog that describes the gauges.
        gauges: Numbers of the gauges in the catalog, int64, shape (k,), each once, in the order of the catalog's ranks.
        counts: Number of points of each gauge, int64, shape (k,). Each is positive.
        times: Time of each point in nanoseconds since the Unix epoch, uint64, shape (n,).
        words: Bit pattern of each value, int64, shape (n,).
        integers: Whether each value is an integer, bool, shape (n,). Other values are float64.
    """

    encoder: "GaugeEncoder"
    gauges: NDArray[np.int64]
    counts: NDArray[np.int64]
    times: NDArray[np.uint64]
    words: NDArray[np.int64]
    integers: NDArray[np.bool_]

    def encode(self) -> list[tuple[Scope, bytes]]:
        """Encode the points as the `metrics` fields of one `ScopeMetrics` message for each scope."""
        return self.encoder.encode(self)

    def series(self) -> Iterator[Gauge]:
        """Yield the gauges. A gauge with values of both types yields its integers separately."""
        end = 0
        for number, count in zip(self.gauges.tolist(), self.counts.tolist(), strict=True):
            begin, end = end, end + count
            times, words, integers = self.times[begin:end], self.words[begin:end], self.integers[begin:end]
            if integers.all():
                yield self._gauge(number, times, words)
            elif not integers.any():
                yield self._gauge(number, times, words.view(np.float64))
            else:
                yield self._gauge(number, times[~integers], words[~integers].view(np.float64))
                yield self._gauge(number, times[integers], words[integers])

    def _gauge(self, number: int, times: NDArray[np.uint64], values: NDArray[np.float64] | NDArray[np.int64]) -> Gauge:
        name, unit, description, attributes, scope = self.encoder.catalog[number]
        return Gauge(name, times, values, unit=unit, description=description, attributes=attributes, scope=scope)


@dataclass(frozen=True)
class WideBatch(Batch):
    """A batch in which gauges with few points each are arrays.

    Attributes:
        wide: Points of these gauges; None if there are none.
    """

    wide: GaugePoints | None = None

    @property
    def points(self) -> int:
        return super().points + (0 if self.wide is None else len(self.wide.times))

    @property
    def all_series(self) -> Sequence[Series]:
        return [*(() if self.wide is None else self.wide.series()), *self.series]


@dataclass(frozen=True, eq=False)
class _Template:
    """Encoded metrics without times and values.

    Attributes:
        data: Encoded metrics, uint8.
        times: Offset of each point's time in `data`, int64, shape (n,). The tag of the value and the value follow it.
        scopes: Number of each scope, and the end of its metrics in `data`.
    """

    data: NDArray[np.uint8]
    times: NDArray[np.int64]
    scopes: list[tuple[int, int]]

    @property
    def size(self) -> int:
        return self.data.nbytes + self.times.nbytes


class GaugeEncoder:
    """Encoder of the points of one catalog's gauges. Not thread-safe."""

    def __init__(self, catalog: GaugeCatalog) -> None:
        self.catalog = catalog
        self._templates: OrderedDict[tuple[bytes, bytes], _Template] = OrderedDict()
        self.template_bytes = 0
        """Total bytes of the templates that are kept."""

    def encode(self, points: GaugePoints) -> list[tuple[Scope, bytes]]:
        """Encode points; see `GaugePoints.encode`."""
        template = self._template(points)
        data = template.data.copy()
        integers = np.where(points.integers, np.uint8(_POINT_AS_INT), np.uint8(_POINT_AS_DOUBLE))
        words = _unaligned_words(data)
        words[template.times] = points.times
        data[template.times + 8] = integers
        words[template.times + 9] = points.words.view(np.uint64)
        encoded, begin = [], 0
        for scope, end in template.scopes:
            encoded.append((self.catalog.scopes[scope], data[begin:end].tobytes()))
            begin = end
        return encoded

    def _template(self, points: GaugePoints) -> _Template:
        key = points.gauges.tobytes(), points.counts.tobytes()
        if key in self._templates:
            self._templates.move_to_end(key)
            return self._templates[key]
        template = _build_template(self.catalog, points.gauges, points.counts)
        self._templates[key] = template
        self.template_bytes += template.size
        while len(self._templates) > 1 and (
            len(self._templates) > _MOST_TEMPLATES or self.template_bytes > _MOST_TEMPLATE_BYTES
        ):
            self.template_bytes -= self._templates.popitem(last=False)[1].size
        return template


def _build_template(catalog: GaugeCatalog, gauges: NDArray[np.int64], counts: NDArray[np.int64]) -> _Template:
    arrays = catalog.arrays()
    attribute_sizes = arrays.attributes.sizes[gauges]
    point_bodies = _POINT_FIELDS + attribute_sizes
    point_sizes = 1 + _varint_sizes(point_bodies) + point_bodies
    # Metrics: those of the gauges, each once.
    firsts = np.flatnonzero(np.diff(arrays.metrics[gauges], prepend=-1))
    metrics = arrays.metrics[gauges[firsts]]
    gauge_bodies = np.add.reduceat(counts * point_sizes, firsts)
    header_sizes = arrays.headers.sizes[metrics]
    metric_bodies = header_sizes + 1 + _varint_sizes(gauge_bodies) + gauge_bodies
    metric_sizes = 1 + _varint_sizes(metric_bodies) + metric_bodies
    ends = np.cumsum(metric_sizes)
    data: NDArray[np.uint8] = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    begins = ends - metric_sizes
    data[begins] = _SCOPE_METRICS_METRICS
    headers = _write_varints(data, begins + 1, metric_bodies)
    _copy_pieces(arrays.headers, metrics, data, headers)
    data[headers + header_sizes] = _METRIC_GAUGE
    metric_points = _write_varints(data, headers + header_sizes + 1, gauge_bodies)
    # Points: those of a metric's gauges follow each other.
    before = np.cumsum(counts * point_sizes) - counts * point_sizes
    shift = np.repeat(metric_points - before[firsts], np.diff(firsts, append=len(gauges)))
    positions = _runs(before + shift, counts, point_sizes)
    data[positions] = _GAUGE_POINTS
    times = _write_varints(data, positions + 1, np.repeat(point_bodies, counts))
    data[times] = _POINT_TIME
    if attribute_sizes.any():
        _copy_pieces(arrays.attributes, np.repeat(gauges, counts), data, times + _POINT_FIELDS)
    scopes = arrays.scopes[metrics]
    last = np.flatnonzero(np.diff(scopes, append=-1))
    return _Template(data, times + 1, list(zip(scopes[last].tolist(), ends[last].tolist(), strict=True)))


def _unaligned_words(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a view of bytes whose item i is the word that begins at byte i."""
    return np.ndarray((max(len(data) - 7, 0),), "<u8", data, 0, (1,))


def _runs(starts: NDArray[np.int64], counts: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``counts[i]`` numbers from ``starts[i]`` on, at intervals of ``steps[i]``, for each i."""
    index = np.arange(int(counts.sum()))
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + (index - first) * np.repeat(steps, counts)


def _copy_pieces(
    pieces: Pieces, chosen: NDArray[np.int64], data: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> None:
    """Copy the chosen pieces to the given offsets."""
    sizes = pieces.sizes[chosen]
    one = np.ones(1, np.int64)
    data[_runs(offsets, sizes, np.broadcast_to(one, sizes.shape))] = pieces.data[
        _runs(pieces.ends[chosen] - sizes, sizes, np.broadcast_to(one, sizes.shape))
    ]


def _varint_sizes(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of bytes of each number as a varint."""
    sizes: NDArray[np.int64] = np.ones(len(numbers), np.int64)
    limit = 1 << 7
    while (more := numbers >= limit).any():
        sizes += more
        limit <<= 7
    return sizes


def _write_varints(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], numbers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Write a varint at each offset, and return the offsets after them."""
    sizes = _varint_sizes(numbers)
    for byte in range(int(sizes.max(initial=0))):
        chosen = sizes > byte
        more = np.where(sizes[chosen] > byte + 1, 0x80, 0)
        data[offsets[chosen] + byte] = (numbers[chosen] >> 7 * byte) & 0x7F | more
    return offsets + sizes
