"""The tables in ClickHouse: for one server, or for a cluster of shards and replicas.

On one server a table has its name. On a cluster each server has its part as `NAME_local`, kept on all replicas of its shard, and
`NAME` reaches all parts. Series are spread over the shards, so a run may be larger than a shard; everything about a series is on one.

- `points` is as lean as it can be: 8 to 10 bytes a point on disk. `value` is computed on reading.
- `precedence` is the number of the arrival, inverted: of equal rows the one that arrived first stays.
- `series` and `process` add up: every commit writes what it adds, and merging makes one row of many. In `series`, rows of run 0 say
  how far each server's commits are counted.
- `intent` says what commits are about to write, and which are over.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tensormeter.errors import StoreError
from tensormeter.server.store.clickhouse.address import Address
from tensormeter.server.store.clickhouse.connection import Connection

__all__ = ["TABLES", "prepare", "statements"]

SCHEMA_VERSION: Final = 2

_TOKENS: Final = "non_replicated_deduplication_window = 10000"
_REPLICATED_TOKENS: Final = "replicated_deduplication_window = 50000, replicated_deduplication_window_seconds = 604800"
"""Tokens are needed for as long as two may count one commit: some minutes; after a pause of all servers until intents go."""

_REPLACING: Final = "ReplacingMergeTree(precedence)"
_ADDING: Final = "AggregatingMergeTree"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        shard: The expression by which its rows are spread.
        expires: Whether retention removes its rows.
        tokens: Whether it remembers the tokens of inserts.
    """

    name: str
    columns: str
    engine: str
    order: str
    shard: str
    partition: str = ""
    primary: str = ""
    expires: bool = False
    ttl: str = ""
    tokens: bool = False


_POINT: Final = """
    run UInt64,
    series UInt64,
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),"""

TABLES: Final = (
    Table(
        "points",
        _POINT
        + """
    word Int64 CODEC(ZSTD(3)),                        -- the bits of a Float64, or an Int64
    integer Bool,                                     -- which
    precedence UInt64 CODEC(Delta, ZSTD(1)),
    received DateTime('UTC') CODEC(Delta, ZSTD(1)),
    value Float64 ALIAS if(integer, toFloat64(word), reinterpretAsFloat64(word))""",
        _REPLACING,
        "run, series, time",
        "series",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "distributions",
        _POINT
        + """
    data String CODEC(ZSTD(3)),                       -- the OTLP data point without attributes
    precedence UInt64 CODEC(Delta, ZSTD(1)),
    received DateTime('UTC') CODEC(Delta, ZSTD(1))""",
        _REPLACING,
        "run, series, time",
        "series",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "gap",
        """
    run UInt64,
    series UInt64,
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),   -- a sender said that the series has no value then
    precedence UInt64 CODEC(Delta, ZSTD(1)),
    received DateTime('UTC') CODEC(Delta, ZSTD(1))""",
        _REPLACING,
        "run, series, time",
        "series",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "series",
        """
    run UInt64,
    series UInt64,
    metric LowCardinality(String),
    process SimpleAggregateFunction(anyLast, String),
    kind SimpleAggregateFunction(anyLast, String),
    scope SimpleAggregateFunction(anyLast, String),
    attributes SimpleAggregateFunction(anyLast, String),
    unit SimpleAggregateFunction(anyLast, String),
    description SimpleAggregateFunction(anyLast, String),
    count SimpleAggregateFunction(sum, UInt64),
    numbers SimpleAggregateFunction(sum, UInt64),     -- points that are numbers and not NaN; the next three are about them
    total SimpleAggregateFunction(sum, Float64),
    minimum SimpleAggregateFunction(min, Float64),
    maximum SimpleAggregateFunction(max, Float64),
    -- time, word, whether it is an integer, whether the step is known, the step, the series of steps
    last SimpleAggregateFunction(max, Tuple(Int64, Int64, UInt8, UInt8, Int64, UInt64))""",
        _ADDING,
        "run, series, metric",
        "series",
        primary="run, series",
        tokens=True,
    ),
    Table(
        "intent",
        """
    received DateTime('UTC') DEFAULT now() CODEC(Delta, ZSTD(1)),
    number UInt64,
    run UInt64,                                       -- 0: this row only says what is over
    server UInt64,
    over UInt64,                                      -- the number of a commit that is over, or 0
    first Int64,                                      -- the earliest time of a point, and the latest
    last Int64,
    series Array(UInt64) CODEC(ZSTD(3)),
    described String CODEC(ZSTD(3)),                  -- JSON: what those series are that no sum was known of
    claimed_from Array(UInt64),                       -- commits whose points these are not, should they write them
    claimed_series Array(UInt64),
    claimed_time Array(Int64)""",
        "MergeTree",
        "received, run",
        "run",
        "toDate(received)",
        ttl="received + INTERVAL 3 DAY",
    ),
    Table(
        "process",
        """
    run UInt64,
    process String,
    project SimpleAggregateFunction(anyLast, String),
    run_id SimpleAggregateFunction(anyLast, String),
    name SimpleAggregateFunction(max, Tuple(UInt64, String)),
    resource SimpleAggregateFunction(max, Tuple(UInt64, UInt32, String)),    -- number, attempt, JSON
    seen SimpleAggregateFunction(min, UInt64),
    created SimpleAggregateFunction(min, Int64),
    updated SimpleAggregateFunction(max, Int64),
    newest SimpleAggregateFunction(max, Int64),
    first_start SimpleAggregateFunction(min, Int64),
    started SimpleAggregateFunction(max, Int64),
    ended SimpleAggregateFunction(max, Tuple(Int64, UInt64, String)),        -- time, number, state
    turned SimpleAggregateFunction(max, UInt64),                             -- number of the latest start or end
    losses SimpleAggregateFunction(max, Tuple(UInt64, String)),
    config SimpleAggregateFunction(max, Tuple(Int64, UInt64, String)),       -- time, number, JSON
    tags SimpleAggregateFunction(min, Tuple(UInt64, String)),
    grp SimpleAggregateFunction(min, Tuple(UInt64, String)),
    notes SimpleAggregateFunction(min, Tuple(UInt64, String)),
    first_step SimpleAggregateFunction(min, Int64),                          -- of processes of later attempts than the first
    began SimpleAggregateFunction(min, Int64)""",
        _ADDING,
        "run, process",
        "run",
    ),
    Table(
        "event",
        """
    run UInt64,
    time Int64 CODEC(Delta, ZSTD(1)),
    process String,
    name LowCardinality(String),
    digest FixedString(32),                           -- SHA-256 of what tells events of a time apart
    id UInt64,
    key String,
    has_key UInt8,
    step Int64,
    has_step UInt8,
    body String CODEC(ZSTD(3)),                       -- JSON
    attributes String CODEC(ZSTD(3)),                 -- JSON object
    record String CODEC(ZSTD(3)),                     -- JSON object: severity, ids and scope; "" in older rows
    precedence UInt64,
    received DateTime('UTC') CODEC(Delta, ZSTD(1))""",
        _REPLACING,
        "run, time, process, name, digest",
        "run",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "media",
        """
    run UInt64,
    digest FixedString(64),
    content_type LowCardinality(String),
    data String CODEC(NONE),
    precedence UInt64,
    received DateTime('UTC')""",
        _REPLACING,
        "run, digest",
        "run",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "batch",
        """
    id String,
    digest FixedString(32),                           -- SHA-256 of signal and payload
    rejected UInt64,
    message String,
    precedence UInt64,
    received DateTime('UTC') CODEC(Delta, ZSTD(1))""",
        _REPLACING,
        "id",
        "cityHash64(id)",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "arrival",
        """
    received DateTime('UTC') CODEC(Delta, ZSTD(1)),
    run UInt64,
    server UInt64,
    number UInt64,
    first Int64,                                      -- the earliest time of a point in it
    metrics Array(LowCardinality(String)),
    events UInt8,
    anew UInt8                                        -- whether an attempt turned out to begin earlier than was known""",
        "MergeTree",
        "received, run",
        "run",
        "toDate(received)",
        ttl="received + INTERVAL 1 DAY",
    ),
    Table(
        "annotation",
        """
    run UInt64,                                       -- 0: of the store
    field LowCardinality(String),
    value String,
    number UInt64""",
        "ReplacingMergeTree(number)",
        "run, field",
        "run",
    ),
    Table(
        "deleted",
        """
    run UInt64,
    project String,
    run_id String,
    time Int64""",
        "ReplacingMergeTree",
        "run",
        "run",
    ),
)


def statements(database: str, cluster: str = "", retention_days: float | None = None) -> list[str]:
    """The statements that make the tables; each may be run again.

    Args:
        database: Its name.
        cluster: As in `system.clusters`; "" for one server. Replicas name themselves by the macros {shard} and {replica}.
        retention_days: After which points, distributions, events, media and batch ids go, counted from their arrival.
    """
    on = f" ON CLUSTER '{cluster}'" if cluster else ""
    found = [f"CREATE DATABASE IF NOT EXISTS {database}{on}"]
    for table in TABLES:
        found.append(_create(table, database, cluster, on, retention_days))
        if cluster:
            found.append(
                f"CREATE TABLE IF NOT EXISTS {database}.{table.name}{on} AS {database}.{table.name}_local\n"
                f"ENGINE = Distributed('{cluster}', '{database}', '{table.name}_local', {table.shard})"
            )
    return found


def prepare(address: Address, retention_days: float | None) -> Connection:
    """Connect, and make what tables are not there yet.

    Raises:
        StoreError: They were made by a newer version.
        StoreUnavailableError: ClickHouse cannot be reached, or refuses.
    """
    connection = Connection(address)
    try:
        known = connection.rows("SELECT name FROM system.tables WHERE database = {name:String}", name=address.database)
        names = {row[0] for row in known}
        if not names >= {table.name for table in TABLES}:
            for statement in statements(address.database, address.cluster, retention_days):
                connection.execute(statement)
    finally:
        connection.close()
    connection = Connection(address, address.database)
    try:
        rows = connection.rows("SELECT max(toUInt64(value)) FROM annotation FINAL WHERE run = 0 AND field = 'schema'")
        version = int(rows[0][0]) if rows else 0
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{address} was made by a newer tensormeter (schema {version}, this one knows {SCHEMA_VERSION}); "
                "upgrade tensormeter, or choose another database"
            )
        if version < SCHEMA_VERSION:
            for statement in _upgrade(address.cluster) if version else ():
                connection.execute(statement)
            connection.execute(f"INSERT INTO annotation VALUES (0, 'schema', '{SCHEMA_VERSION}', {SCHEMA_VERSION})")
        _add_columns(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def _upgrade(cluster: str) -> Iterator[str]:
    """The statements that bring tables of version 1 up to date, besides making those that are new."""
    for table in TABLES:
        if table.tokens and cluster:
            yield f"ALTER TABLE {table.name}_local ON CLUSTER '{cluster}' MODIFY SETTING {_REPLICATED_TOKENS}"
        elif table.tokens:
            yield f"ALTER TABLE {table.name} MODIFY SETTING {_TOKENS}"


def _add_columns(connection: Connection, address: Address) -> None:
    """Add what newer versions store. Older servers name the columns that they use, so the tables' version stays."""
    known = connection.rows(
        "SELECT name FROM system.columns WHERE database = {name:String} AND table = 'event'", name=address.database
    )
    if ["record"] in known:
        return
    on = f" ON CLUSTER '{address.cluster}'" if address.cluster else ""
    for table in ("event_local", "event") if address.cluster else ("event",):
        connection.execute(f"ALTER TABLE {table}{on} ADD COLUMN IF NOT EXISTS record String AFTER attributes")


def _create(table: Table, database: str, cluster: str, on: str, retention_days: float | None) -> str:
    name = f"{table.name}_local" if cluster else table.name
    engine = table.engine
    if cluster:
        kind, _, version = engine.partition("(")
        arguments = [
            f"'/clickhouse/tables/{{shard}}/{database}/{name}'",
            "'{replica}'",
            *filter(None, [version.rstrip(")")]),
        ]
        engine = f"Replicated{kind}({', '.join(arguments)})"
    lines = [f"CREATE TABLE IF NOT EXISTS {database}.{name}{on}\n({table.columns}\n)", f"ENGINE = {engine}"]
    if table.partition:
        lines.append(f"PARTITION BY {table.partition}")
    if table.primary:
        lines.append(f"PRIMARY KEY ({table.primary})")
    lines.append(f"ORDER BY ({table.order})")
    ttl = table.ttl
    if table.expires and retention_days is not None:
        ttl = f"received + INTERVAL {max(1, round(retention_days * 86400))} SECOND"
    if ttl:
        lines.append(f"TTL {ttl}")
    if table.tokens:
        lines.append(f"SETTINGS {_REPLICATED_TOKENS if cluster else _TOKENS}")
    return "\n".join(lines)
