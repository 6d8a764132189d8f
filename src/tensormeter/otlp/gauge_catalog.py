"""Numbers for gauges, with their encoded metadata, so that each gauge is described and encoded only once."""

from array import array
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, NumberDataPoint

from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.otlp.batch import SCOPE, Attribute, Scope
from tensormeter.otlp.values import key_values, plain_text

__all__ = ["CatalogArrays", "GaugeCatalog", "GaugeMetadata", "Pieces"]


class GaugeMetadata(NamedTuple):
    """Metadata of a gauge, as in `Series`."""

    name: str
    unit: str = ""
    description: str = ""
    attributes: Mapping[str, Attribute] = MappingProxyType({})
    scope: Scope = SCOPE


class Pieces(NamedTuple):
    """Pieces of bytes, one after another: piece i is ``data[ends[i] - sizes[i] : ends[i]]``."""

    data: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    ends: NDArray[np.int64]


class CatalogArrays(NamedTuple):
    """The contents of a catalog with k gauges and m metrics, as arrays.

    Attributes:
        ranks: Position of each gauge in the order of scopes and metrics, int64, shape (k,).
        metrics: Metric of each gauge, int64, shape (k,). Gauges with the same scope, name, unit and description share one.
        scopes: Scope of each metric, int64, shape (m,).
        headers: Encoded name, description and unit of each metric.
        attributes: Encoded attributes of each gauge.
    """

    ranks: NDArray[np.int64]
    metrics: NDArray[np.int64]
    scopes: NDArray[np.int64]
    headers: Pieces
    attributes: Pieces


class _Bytes:
    """Growing list of pieces of bytes."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q")

    def append(self, piece: bytes) -> None:
        self._data += piece
        self._ends.append(len(self._data))

    def pieces(self) -> Pieces:
        ends = np.array(self._ends, np.int64)
        return Pieces(np.frombuffer(bytes(self._data), np.uint8), np.diff(ends, prepend=0), ends)


class GaugeCatalog:
    """The gauges of any number of processes. Gauges are numbered from 0. Not thread-safe."""

    def __init__(self) -> None:
        self.scopes: Final[list[Scope]] = []
        self._metadata: list[GaugeMetadata] = []
        self._plain: dict[str, int] = {}
        """Numbers of gauges that have only a name, by name."""
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._metric_numbers: dict[tuple[int, bytes], int] = {}
        self._scope_numbers: dict[str, int] = {}
        self._metrics, self._metric_scopes = array("q"), array("q")
        self._headers, self._attributes = _Bytes(), _Bytes()
        self._arrays: CatalogArrays | None = None

    def __len__(self) -> int:
        return len(self._metadata)

    def __getitem__(self, number: int) -> GaugeMetadata:
        return self._metadata[number]

    def add(self, gauge: GaugeMetadata) -> int:
        """Return the number of a gauge, which gets a new one the first time."""
        if gauge != GaugeMetadata(gauge.name):
            return self._add(gauge)
        number = self._plain.get(gauge.name)
        if number is None:
            number = self._plain[gauge.name] = self._add(gauge)
        return number

    def _add(self, gauge: GaugeMetadata) -> int:
        metric = self._metric(gauge)
        attributes = b""
        if gauge.attributes:
            attributes = NumberDataPoint(attributes=key_values(gauge.attributes)).SerializeToString()
        number = self._numbers.setdefault((metric, attributes), len(self._metadata))
        if number == len(self._metadata):
            self._metadata.append(gauge)
            self._metrics.append(metric)
            self._attributes.append(attributes)
            self._arrays = None
        return number

    def _metric(self, gauge: GaugeMetadata) -> int:
        scope = self._scope_numbers.setdefault(repr(gauge.scope), len(self.scopes))
        if scope == len(self.scopes):
            self.scopes.append(gauge.scope)
        header = Metric(
            name=as_unicode(gauge.name), description=plain_text(gauge.description), unit=plain_text(gauge.unit)
        ).SerializeToString()
        metric = self._metric_numbers.setdefault((scope, header), len(self._metric_scopes))
        if metric == len(self._metric_scopes):
            self._metric_scopes.append(scope)
            self._headers.append(header)
        return metric

    def arrays(self) -> CatalogArrays:
        """Return the contents of the catalog. They are computed again only after `add` has changed it."""
        if self._arrays is None:
            metrics, scopes = np.array(self._metrics, np.int64), np.array(self._metric_scopes, np.int64)
            ranks = np.empty(len(metrics), np.int64)
            ranks[np.lexsort((metrics, scopes[metrics]))] = np.arange(len(metrics))
            self._arrays = CatalogArrays(ranks, metrics, scopes, self._headers.pieces(), self._attributes.pieces())
        return self._arrays
