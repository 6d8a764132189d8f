"""Handlers for lists of metrics, sections and fields."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.server.api import schemas
from tensormeter.server.api.documents import join_metrics, metric_documents
from tensormeter.server.api.params import read_parameters, run_ref, run_refs
from tensormeter.server.api.request_schemas import (
    FieldsParameters,
    MetricListParameters,
    MetricsOfRunsParameters,
    MetricsParameters,
    SectionsOfRunsParameters,
    SectionsParameters,
)
from tensormeter.server.api.responses import encode, json_response
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.cpu_budget import CpuBudget
from tensormeter.server.query.names.sections import direct_rows, sections_of
from tensormeter.server.query.names.selection import NameSelection, encode_name, page_of, select_names
from tensormeter.server.store import RunRef, Store
from tensormeter.server.store.models.names import FieldKind, NameTable

__all__ = ["MetricsApi"]

_RUN: Final = "/api/v1/runs/{run_id}"


class MetricsApi:
    """Handlers for lists of metrics, sections and fields."""

    def __init__(self, stores: Stores, threads: ApiThreads) -> None:
        self._stores = stores
        self._threads = threads

    def routes(self) -> list[Route]:
        """Return the handlers' routes."""
        return [
            Route(f"{_RUN}/metrics", self.metrics),
            Route(f"{_RUN}/sections", self.sections),
            Route("/api/v1/metrics", self.metrics_of_runs),
            Route("/api/v1/sections", self.sections_of_runs),
            Route("/api/v1/fields", self.fields),
        ]

    async def metrics(self, request: Request) -> Response:
        """Return a page of a run's metrics."""
        return await self._metrics(request, [run_ref(request)], read_parameters(request, MetricsParameters))

    async def metrics_of_runs(self, request: Request) -> Response:
        """Return a page of the metrics of several runs."""
        parameters = read_parameters(request, MetricsOfRunsParameters)
        return await self._metrics(request, run_refs(parameters), parameters)

    async def sections(self, request: Request) -> Response:
        """Return a page of the sections of a run's metrics."""
        return await self._sections(request, [run_ref(request)], read_parameters(request, SectionsParameters))

    async def sections_of_runs(self, request: Request) -> Response:
        """Return a page of the sections of several runs' metrics."""
        parameters = read_parameters(request, SectionsOfRunsParameters)
        return await self._sections(request, run_refs(parameters), parameters)

    async def fields(self, request: Request) -> Response:
        """Return a page of the config keys and metrics in a project."""
        parameters = read_parameters(request, FieldsParameters)
        selection = NameSelection(parameters.prefix, parameters.search)

        def work(budget: CpuBudget) -> bytes:
            store = self._stores.of(request)
            kinds: tuple[FieldKind, ...] = ("config", "summary") if parameters.kind is None else (parameters.kind,)
            table = NameTable.union(
                [store.field_names(parameters.project or None, kind, budget.check_now) for kind in kinds]
            )
            rows = select_names(table, selection, budget.check_now)
            page = page_of(table, rows, parameters.limit, parameters.after)
            return encode(schemas.Fields(page.names, page.next, page.total))

        return await self._respond(request, work)

    async def _metrics(
        self, request: Request, refs: Sequence[RunRef], parameters: MetricsParameters | MetricsOfRunsParameters
    ) -> Response:
        def work(budget: CpuBudget) -> bytes:
            store = self._stores.of(request)
            tables = _tables(store, refs, budget)
            table = NameTable.union(tables)
            rows = _select(table, parameters, budget)
            page = page_of(table, rows, parameters.limit, parameters.after)
            documents = []
            for ref, of_run in zip(refs, tables, strict=True):
                budget.check_now()
                names = page.names if of_run is table else [name for name in page.names if encode_name(name) in of_run]
                series = store.metrics(ref, names) if names else []
                documents.append(metric_documents(series, _numeric(parameters)))
            metrics = documents[0] if len(documents) == 1 else join_metrics(documents)
            return encode(schemas.Metrics(metrics, page.next, page.total))

        return await self._respond(request, work)

    async def _sections(
        self, request: Request, refs: Sequence[RunRef], parameters: SectionsParameters | SectionsOfRunsParameters
    ) -> Response:
        if parameters.prefix and not parameters.prefix.endswith("/"):
            raise HTTPException(400, f"prefix: expected a text that ends with '/', got {parameters.prefix[:40]!r}")

        def work(budget: CpuBudget) -> bytes:
            table = NameTable.union(_tables(self._stores.of(request), refs, budget))
            rows = _select(table, parameters, budget)
            page = sections_of(table, rows, parameters.prefix, parameters.limit, parameters.after)
            sections = [schemas.Section(name, count) for name, count in page.sections]
            return encode(schemas.Sections(sections, page.direct, page.next, page.total))

        return await self._respond(request, work)

    async def _respond(self, request: Request, work: Callable[[CpuBudget], bytes]) -> Response:
        return json_response(await self._threads.run_checked(request, work))


def _tables(store: Store, refs: Sequence[RunRef], budget: CpuBudget) -> list[NameTable]:
    tables = []
    for ref in refs:
        budget.check_now()
        tables.append(store.names(ref))
    return tables


def _select(table: NameTable, parameters: MetricListParameters, budget: CpuBudget) -> NDArray[np.int64]:
    selection = NameSelection(parameters.prefix, parameters.search, _numeric(parameters), parameters.system)
    rows = select_names(table, selection, budget.check_now)
    return direct_rows(table, rows, parameters.prefix) if parameters.direct else rows


def _numeric(parameters: MetricListParameters) -> bool | None:
    return None if parameters.kind is None else parameters.kind == "number"
