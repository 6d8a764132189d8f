"""The server's store: its interface, the values that it takes and returns, and two implementations.

`protocol` defines the interface, and `models` the values. `SqliteStore` (package `sqlite`) supports a single server.
`ClickHouseStore` (package `clickhouse`) supports several servers.
"""

from tensormeter.server.store.models.errors import (
    AmbiguousRunError,
    BatchConflictError,
    DamagedError,
    NotFoundError,
    StoreUnavailableError,
    TooManyPointsError,
    TooManySeriesError,
)
from tensormeter.server.store.models.metric_kind import Kind
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.points import Column, Points
from tensormeter.server.store.models.runs import (
    Change,
    ChangedRuns,
    Changes,
    EventPage,
    ProcessAttempt,
    ProcessSummary,
    ProjectSummary,
    Receipt,
    RunChanges,
    RunRef,
    RunSummary,
    RunTable,
    State,
    StoredEvent,
    Summary,
)
from tensormeter.server.store.models.series import (
    MAX_READ_POINTS,
    MetricSummary,
    Reading,
    Selection,
    Series,
    SeriesRollup,
)
from tensormeter.server.store.protocol import STALL_AFTER, Store

__all__ = [
    "MAX_READ_POINTS",
    "STALL_AFTER",
    "AmbiguousRunError",
    "BatchConflictError",
    "Change",
    "ChangedRuns",
    "Changes",
    "Column",
    "DamagedError",
    "EventPage",
    "Kind",
    "MetricSummary",
    "NotFoundError",
    "PointRange",
    "Points",
    "ProcessAttempt",
    "ProcessSummary",
    "ProjectSummary",
    "Reading",
    "Receipt",
    "RunChanges",
    "RunRef",
    "RunSummary",
    "RunTable",
    "Selection",
    "Series",
    "SeriesRollup",
    "State",
    "Store",
    "StoreUnavailableError",
    "StoredEvent",
    "Summary",
    "TooManyPointsError",
    "TooManySeriesError",
]
