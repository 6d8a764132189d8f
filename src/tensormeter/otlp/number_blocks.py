"""Number metrics of a request as blocks of columns, for requests with many series.

A request with many short series has hundreds of bytes of names for each point. A block contains the points of all gauges and sums of
a scope, and identifies each series by a hash. A reader that knows the series needs neither its name nor its attributes, so a series
costs a fraction of a microsecond. Without the C extension there are no blocks, and `decode_metrics` reads everything.

The functions are thread-safe, do not block and keep no state.
"""

import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint, ScopeMetrics

from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import Attribute, Batch, Gauge, Scope, Series, Sum, Temporality
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.decode import attributes, decode_metrics, parse, scope_of

_extension: Any = None
with suppress(ImportError):  # absent if there was no C compiler at installation
    _extension = import_module("tensormeter.otlp._number_blocks")

__all__ = ["MAX_STRETCHES", "NumberBatch", "NumberBlock", "decode_blocks", "hash_name", "hash_series"]

MAX_STRETCHES: Final = 250_000
"""Maximum number of stretches in the blocks of a request. `decode_metrics` reads further metrics, and its limits apply to them."""

_SECRET: Final = secrets.token_bytes(16)
_GAUGE: Final = -1
_KIND: Final = 6
"""Column of a stretch's kind in its places."""

_Constructor = Callable[[str, str, str, Mapping[str, Attribute], Scope], Series]


@dataclass(frozen=True, eq=False)
class NumberBlock:
    """Number points of one scope, as columns. A stretch is a sequence of consecutive points of the same series.

    A series can have several stretches. There are n stretches and m points.

    Attributes:
        scope: Instrumentation scope.
        keys: uint64, shape (n, 2): hash of everything that identifies the series within the scope and the resource, including unit
            and description. The hashes are valid in this process only.
        names: uint64, shape (n,): `hash_name` of the metric.
        counts: int64, shape (n,): number of points of each stretch.
        times: Time of each point in nanoseconds since the Unix epoch, uint64, shape (m,).
        words: Value of each point, int64, shape (m,): an int64 or the bits of a float64.
        integers: bool, shape (m,): whether each value is an int64.
    """

    scope: Scope
    keys: NDArray[np.uint64]
    names: NDArray[np.uint64]
    counts: NDArray[np.int64]
    times: NDArray[np.uint64]
    words: NDArray[np.int64]
    integers: NDArray[np.bool_]
    _places: NDArray[np.int32] = field(repr=False)
    _body: bytes = field(repr=False)

    @property
    def gauges(self) -> NDArray[np.bool_]:
        """Whether each stretch belongs to a gauge, bool, shape (n,)."""
        gauges: NDArray[np.bool_] = self._places[:, _KIND] == _GAUGE
        return gauges

    def describe(self, stretches: Sequence[int]) -> Iterator[Series]:
        """Yield the series of stretches, without points.

        Raises:
            EncodingError: A text is not valid UTF-8.
        """
        places: list[list[int]] = self._places[np.asarray(stretches, np.intp)].tolist()
        for name, name_end, unit, unit_end, description, description_end, kind, first, last in places:
            pairs: Mapping[str, Attribute] = _NO_ATTRIBUTES
            if last:
                point = NumberDataPoint()
                parse(point, self._body[first:last])
                pairs = attributes(point.attributes)
            yield _SERIES[kind](
                self._text(name, name_end),
                self._text(unit, unit_end),
                self._text(description, description_end),
                pairs,
                self.scope,
            )

    def select(self, points: NDArray[np.bool_]) -> "NumberBlock":
        """Return the block with some of the points, and without stretches that lose all of their points."""
        stretches = np.repeat(np.arange(len(self.counts)), self.counts)[points]
        counts = np.bincount(stretches, minlength=len(self.counts))
        kept = counts > 0
        return replace(
            self,
            keys=self.keys[kept],
            names=self.names[kept],
            counts=counts[kept],
            times=self.times[points],
            words=self.words[points],
            integers=self.integers[points],
            _places=self._places[kept],
        )

    def _text(self, first: int, end: int) -> str:
        if first == end:
            return ""
        try:
            return self._body[first:end].decode()
        except UnicodeDecodeError as error:
            raise EncodingError(f"not a protobuf Metric: a text is not valid UTF-8: {error.reason}") from None


def _gauge(name: str, unit: str, description: str, pairs: Mapping[str, Attribute], scope: Scope) -> Gauge:
    return Gauge(name, _NO_TIMES, _NO_VALUES, unit=unit, description=description, attributes=pairs, scope=scope)


def _sum_of(kind: int) -> _Constructor:
    def create(name: str, unit: str, description: str, pairs: Mapping[str, Attribute], scope: Scope) -> Sum:
        return Sum(
            name,
            _NO_TIMES,
            _NO_VALUES,
            _NO_TIMES,
            unit=unit,
            description=description,
            attributes=pairs,
            scope=scope,
            monotonic=bool(kind & 1),
            temporality=Temporality(kind >> 1),
        )

    return create


_NO_TIMES: Final = np.empty(0, np.uint64)
_NO_VALUES: Final = np.empty(0, np.float64)
_NO_ATTRIBUTES: Final[Mapping[str, Attribute]] = {}
_SERIES: Final[Mapping[int, _Constructor]] = {_GAUGE: _gauge} | {kind: _sum_of(kind) for kind in range(6)}
"""Constructors of series by kind: -1 for a gauge, otherwise the temporality and whether a sum is monotonic."""


@dataclass(frozen=True)
class NumberBatch(Batch):
    """A batch whose numbers are in blocks, apart from those that only protobuf can read.

    Attributes:
        blocks: Blocks of the resource.
    """

    blocks: Sequence[NumberBlock] = ()

    @property
    def points(self) -> int:
        return super().points + sum(len(block.times) for block in self.blocks)


def decode_blocks(
    body: bytes, check: Check = no_check, limit: Callable[[bytes, Check], None] | None = None
) -> list[Batch]:
    """Decode an `ExportMetricsServiceRequest` like `decode_metrics`, but to blocks where possible.

    Metrics whose points have exemplars, flags or unknown fields do not become blocks, and neither do distributions.

    Args:
        body: Encoded message.
        check: Function that is called repeatedly. It can raise an error to stop decoding.
        limit: Function that is called with the part of the message that becomes no blocks, and with `check`. It can raise an error
            to refuse the message.

    Raises:
        EncodingError: The bytes are not an `ExportMetricsServiceRequest`.
    """
    split = None
    if _extension is not None and sys.byteorder == "little":
        split = _extension.split_numbers(body, _SECRET, MAX_STRETCHES)
    check()
    rest = body if split is None else split[1]
    if limit is not None:
        limit(rest, check)
    batches = decode_metrics(rest, check)
    blocks: dict[int, list[NumberBlock]] = {}
    for resource, shell, *columns in () if split is None else split[0]:
        check()
        blocks.setdefault(resource, []).append(_block(shell, columns, body))
    return [
        NumberBatch(batch.resource, batch.series, batch.gaps, blocks[number]) if number in blocks else batch
        for number, batch in enumerate(batches)
    ]


def _block(shell: bytes, columns: Sequence[bytes], body: bytes) -> NumberBlock:
    keys, names, counts, places, times, words, integers = columns
    scope = ScopeMetrics()
    parse(scope, shell)
    return NumberBlock(
        scope_of(scope),
        np.frombuffer(keys, np.uint64).reshape(-1, 2),
        np.frombuffer(names, np.uint64),
        np.frombuffer(counts, np.int64),
        np.frombuffer(times, np.uint64),
        np.frombuffer(words, np.int64),
        np.frombuffer(integers, np.bool_),
        np.frombuffer(places, np.int32).reshape(-1, 9),
        body,
    )


def hash_series(texts: list[tuple[str, str, str]], series: Gauge | Sum) -> NDArray[np.uint64]:
    """Return the keys of series without attributes, as in `NumberBlock.keys`, with shape (n, 2).

    Args:
        texts: Name, unit and description of each series.
        series: Any series of the same kind.
    """
    number, temporality, monotonic = 5, 0, 0
    if isinstance(series, Sum):
        number, temporality, monotonic = 7, int(series.temporality), int(series.monotonic)
    keys = b"" if _extension is None else _extension.hash_series(texts, number, temporality, monotonic, _SECRET)
    return np.frombuffer(keys, np.uint64).reshape(-1, 2)


def hash_name(name: str) -> int:
    """Return the hash of a metric's name, as in `NumberBlock.names`."""
    content = name.encode(errors="surrogatepass")
    return hash(content) & (1 << 64) - 1 if _extension is None else int(_extension.hash_name(content, _SECRET))
