"""Responses with runs, whose summaries may have any number of metrics, produced in pieces."""

import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec import UNSET, Raw, Struct
from starlette.exceptions import HTTPException

from tensormeter.server.api import schemas
from tensormeter.server.api.documents import result_documents, run_document, summary_documents, trim_config
from tensormeter.server.api.responses import encode
from tensormeter.server.query.names.selection import decode_name
from tensormeter.server.query.runs.fields import split_names, unquote_name
from tensormeter.server.store import RunRef, RunSummary, Store
from tensormeter.server.store.models.results import Results

__all__ = ["RunFields", "list_pieces", "list_runs", "run_pieces"]

MAX_FIELDS: Final = 1000
MAX_LEVELS: Final = 100

_METRICS: Final = 10_000
"""Number of summaries in memory at a time."""

_MAX_LIST: Final = 32 << 20
"""Size of the runs in a response, in bytes, at which no more runs are added."""

_RUNS: Final = 8
"""Number of runs that are loaded first, because each config may have a megabyte."""

_MAX_RUNS: Final = 250
_LOADED: Final = 4 << 20
"""Size, in bytes, of the runs that are loaded at once afterwards, as estimated from earlier ones."""


@dataclass(frozen=True)
class RunFields:
    """Requested parts of runs.

    Attributes:
        metrics: Metrics whose summaries were requested; None for all.
        keys: Keys of the config that were requested; None for the whole config.
    """

    metrics: Sequence[str] | None
    keys: Sequence[str] | None

    @classmethod
    def parse(cls, text: str) -> "RunFields":
        """Parse the parameter `fields`.

        Raises:
            HTTPException: 400 if there are too many names, or names with too many levels.
        """
        fields = [unquote_name(name) for name in split_names(text) if name]
        if len(fields) > MAX_FIELDS or any(name.count(".") > MAX_LEVELS for name in fields):
            raise HTTPException(400, f"fields: expected at most {MAX_FIELDS} names of at most {MAX_LEVELS} levels")
        return cls(
            None if "summary" in fields else _under("summary.", fields),
            None if "config" in fields else _under("config.", fields),
        )

    def results_of(self, run: RunSummary) -> Mapping[str, schemas.Summary]:
        """Return the requested values that the script wrote to the summary under names that are no metrics."""
        return result_documents(run.results, [name for name in self.metrics or () if name not in run.summary])

    def config_of(self, run: RunSummary) -> Mapping[str, Any]:
        """Return the requested part of a run's config."""
        return run.config if self.keys is None else trim_config(run.config, self.keys)


def list_runs(store: Store, numbers: Sequence[int], fields: RunFields, total: int, offset: int) -> bytes:
    """Return the response with a page of runs whose summaries are limited to certain metrics.

    Args:
        store: Store with the runs.
        numbers: Numbers of the runs on the page, in order.
        fields: Requested parts, which must not include all summaries.
        total: Number of matching runs.
        offset: Number of matching runs before the page.
    """
    damaged: list[str] = []
    documents: list[Raw] = []
    size = taken = 0
    step = _RUNS
    while taken < len(numbers) and size < _MAX_LIST:
        some = numbers[taken : taken + step]
        for run in store.runs(some, fields.metrics, damaged):
            document = run_document(run, fields.config_of(run))
            document.summary = {**document.summary, **fields.results_of(run)}
            documents.append(Raw(encode(document)))
            size += len(bytes(documents[-1]))
        taken += len(some)
        step = max(_RUNS, min(_MAX_RUNS, _LOADED * taken // max(size, 1)))
    return b"".join([b'{"runs":', encode(documents), b",", _end(total, offset + taken, damaged)])


def list_pieces(
    store: Store, numbers: Sequence[int], fields: RunFields, total: int, offset: int
) -> Generator[bytes, None, None]:
    """Yield the response with a page of runs and all their summaries. The arguments are as for `list_runs`."""
    damaged: list[str] = []
    size = taken = 0
    before = b'{"runs":['
    for number in numbers:
        if size >= _MAX_LIST:
            break
        taken += 1
        for run in store.runs([number], (), damaged):
            ref = RunRef(run.run_id, run.project)
            yield before
            for piece in run_pieces(store, ref, run_document(run, fields.config_of(run)), run.results):
                size += len(piece)
                yield piece
            before = b","
    yield (before if before != b"," else b"") + b"]," + _end(total, offset + taken, damaged)


def run_pieces(
    store: Store, ref: RunRef, document: schemas.Run | schemas.RunDetails, results: Results
) -> Generator[bytes, None, None]:
    """Yield a run's document with the summaries of all metrics. They are not read at the same time.

    Args:
        store: Store with the run.
        ref: Run.
        document: Document of the run, whose summary is ignored.
        results: Results of the run.
    """
    place = secrets.token_hex(16)
    head, _, tail = encode(_with_summary(document, Raw(encode(place)))).partition(encode(place))
    yield head + b"{"
    before = b""
    written = dict.fromkeys(results.values)
    for metrics in _chunks(store, ref):
        summaries = store.summaries(ref, metrics)
        for name in [name for name in written if name in summaries]:
            del written[name]
        piece = encode(summary_documents(summaries, results))[1:-1]
        if piece:
            yield before + piece
            before = b","
    piece = encode(result_documents(results, written))[1:-1]
    if piece:
        yield before + piece
    yield b"}" + tail


def _chunks(store: Store, ref: RunRef) -> Iterator[list[str]]:
    table = store.names(ref)
    for first in range(0, len(table), _METRICS):
        yield [decode_name(table[row]) for row in range(first, min(first + _METRICS, len(table)))]


def _with_summary(document: Struct, summary: Raw) -> dict[str, Any]:
    fields = {name: getattr(document, name) for name in document.__struct_fields__}
    return {name: value for name, value in (fields | {"summary": summary}).items() if value is not UNSET}


def _end(total: int, following: int, damaged: Sequence[str]) -> bytes:
    end: dict[str, Any] = {"total": total, "next": following if following < total else None}
    return encode(end | ({"damaged": [*dict.fromkeys(damaged)]} if damaged else {}))[1:]


def _under(prefix: str, names: list[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
