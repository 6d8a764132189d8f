"""Points of one process in one request, as columns."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.number_blocks import hash_name
from tensormeter.server.store.clickhouse.keys import SeriesFields, series_keys
from tensormeter.server.store.models.points import Column, Points
from tensormeter.server.store.rules.ingest_blocks import BlockArrival
from tensormeter.server.store.rules.ingest_series import Arrival, Rejections
from tensormeter.server.store.rules.key_table import KeyTable
from tensormeter.server.store.rules.resource_identity import Source

__all__ = ["SeriesIdentity", "Stretches", "stretches_of", "stretches_of_block"]


class SeriesIdentity(SeriesFields, Protocol):
    """Everything that describes a series within a process; see `Arrival`."""

    @property
    def unit(self) -> str: ...

    @property
    def description(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Stretches:
    """Points of one process in one request. A stretch consists of consecutive points of one series. There are n stretches.

    Attributes:
        keys: uint64, shape (n,): keys of the series.
        described: uint64, shape (n, 2): hash of the series with its unit and description.
        counts: int64, shape (n,): number of points of each stretch.
        steps: bool, shape (n,): whether the series contains the steps that tensormeter logs.
        points: All points, one stretch after the other; numbers or distributions.
        identify: Function that describes the series of a stretch.
    """

    run: int
    source: Source
    keys: NDArray[np.uint64]
    described: NDArray[np.uint64]
    counts: NDArray[np.int64]
    steps: NDArray[np.bool_]
    points: Column
    identify: Callable[[int], SeriesIdentity] = field(repr=False)


def stretches_of(run: int, source: Source, arrivals: Sequence[Arrival]) -> Iterator[Stretches]:
    """Yield the stretches of a source's arrivals, numbers and distributions separately."""
    for kind, group in groupby(sorted(arrivals, key=_class), key=_class):
        part = list(group)
        keys = series_keys(run, source.process, part)
        texts = [hash((arrival.unit, arrival.description)) for arrival in part]
        yield Stretches(
            run,
            source,
            keys,
            np.column_stack([keys, keys ^ np.array(texts, np.int64).view(np.uint64)]),
            np.array([len(arrival.points.times) for arrival in part], np.int64),
            np.array([arrival.metric == STEP_METRIC and arrival.kind == "gauge" for arrival in part], np.bool_),
            (Points if kind else type(part[0].points)).concat([arrival.points for arrival in part]),
            part.__getitem__,
        )


def stretches_of_block(
    run: int, arrival: BlockArrival, described: KeyTable, rejections: Rejections
) -> Stretches | None:
    """Return the stretches of a block; None if all of them are refused, which are counted in `rejections`.

    Args:
        run: Key of the run.
        arrival: Block.
        described: Keys of the series that need no description, by `Stretches.described`.
        rejections: Number of refused points, by reason.
    """
    salt = _salt(run, arrival.source.process, arrival.scope)
    hashes = arrival.block.keys ^ salt
    keys = described.find(hashes).view(np.uint64)
    unknown = np.flatnonzero(keys == 0)
    if len(unknown):
        keys = keys.copy()
        refused = _describe(run, arrival, hashes, keys, unknown, rejections)
        if refused.all():
            return None
        if refused.any():
            kept = ~refused
            arrival = replace(arrival, block=arrival.block.select(np.repeat(kept, arrival.block.counts)))
            keys, hashes = keys[kept], hashes[kept]
    block = arrival.block

    def identify(stretch: int) -> SeriesIdentity:
        identity = next(arrival.identify([stretch]))
        assert not isinstance(identity, str)
        return identity

    return Stretches(
        run,
        arrival.source,
        keys,
        hashes,
        block.counts,
        block.gauges & (block.names == np.uint64(hash_name(STEP_METRIC))),
        Points(block.times.view(np.int64), block.words, block.integers),
        identify,
    )


def _describe(
    run: int,
    arrival: BlockArrival,
    hashes: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    unknown: NDArray[np.intp],
    rejections: Rejections,
) -> NDArray[np.bool_]:
    """Set the keys of unknown stretches, and return which stretches are refused."""
    refused = np.zeros(len(keys), np.bool_)
    _, first, inverse = np.unique(
        np.ascontiguousarray(hashes[unknown]).view("u8,u8").reshape(-1), return_index=True, return_inverse=True
    )
    inverse = inverse.reshape(-1)
    identities = list(arrival.identify(unknown[first].tolist()))
    found = [identity for identity in identities if not isinstance(identity, str)]
    valid = np.array([not isinstance(identity, str) for identity in identities], np.bool_)
    distinct = np.zeros(len(identities), np.uint64)
    distinct[valid] = series_keys(run, arrival.source.process, found)
    keys[unknown] = distinct[inverse]
    refused[unknown] = ~valid[inverse]
    for index, identity in enumerate(identities):
        if isinstance(identity, str):
            rejections[identity] += int(arrival.block.counts[unknown[inverse == index]].sum())
    return refused


def _salt(run: int, process: str, scope: str) -> NDArray[np.uint64]:
    """Return what distinguishes the hashes of equal series of different runs, processes and scopes."""
    content = json.dumps([run, process, scope]).encode()
    return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint64)


def _class(arrival: Arrival) -> bool:
    return isinstance(arrival.points, Points)
