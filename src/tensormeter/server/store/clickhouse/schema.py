"""The ClickHouse tables, for a single server or for a cluster of shards and replicas.

On a cluster, each shard stores some rows of a table `NAME` in a table `NAME_local`, which exists on all replicas of the
shard. The table `NAME` reads all shards. All rows of a series are on the same shard. The series of a run are on
different shards, so a run may be larger than a shard.

- `points` takes 8 to 10 bytes per point on disk. Its column `value` is computed when it is read.
- `rollup` contains the blocks of series that had many points in one commit, for charts of long series. They take at most about
  one byte per point.
- The column `precedence` contains the inverted arrival number. If several rows have the same key, ClickHouse therefore
  keeps the row that arrived first.
- `summary` and `process` contain aggregates that repeated rows cannot change, such as minima, maxima and latest values.
  Every commit writes new rows, and ClickHouse merges the rows with the same key. Counts and sums are computed from
  `points`.
- `catalog` contains the names and descriptions of series, in order of their metrics. A server writes the row of a series
  when it first stores points of the series.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.clickhouse.address import Address
from tensormeter.server.store.clickhouse.connection import Connection

__all__ = ["TABLES", "prepare", "statements"]

SCHEMA_VERSION: Final = 7

_OLD_READ_ALL: Final = "anew"
"""Name of the column `arrival.read_all` before schema version 3."""

_PARTS: Final = 64
_PART: Final = (1 << 64) // _PARTS
"""Range of run keys that are copied in one statement. Copying all of them could exceed the time limit of a statement."""

_NEVER: Final = (1 << 63) - 1
_FIRST_STEP: Final = f"SimpleAggregateFunction(min, Int64) DEFAULT {_NEVER}"
_LATEST: Final = "SimpleAggregateFunction(max, Tuple(Int64, UInt64, String))"

_FIRST: Final = f"SimpleAggregateFunction(min, Tuple(UInt64, String)) DEFAULT ({(1 << 64) - 1}, '')"
"""Type of a column with the value that arrived first. Its default has no arrival number, so any value replaces it."""

_REPLACING: Final = "ReplacingMergeTree(precedence)"
_ADDING: Final = "AggregatingMergeTree"


@dataclass(frozen=True)
class Table:
    """A ClickHouse table.

    Attributes:
        shard: Expression that assigns rows to shards.
        expires: Whether retention removes rows.
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


_POINT: Final = """
    run UInt64,
    series UInt64,
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),"""

_ARRIVAL: Final = """
    precedence UInt64 CODEC(Delta, ZSTD(1)),
    received DateTime('UTC') CODEC(Delta, ZSTD(1))"""

TABLES: Final = (
    Table(
        "points",
        _POINT
        + """
    word Int64 CODEC(ZSTD(3)),                        -- the bits of a Float64, or an Int64
    integer Bool,                                     -- whether it is an Int64
    dense Bool,                                       -- whether a row of `rollup` covers it"""
        + _ARRIVAL
        + """,
    value Float64 ALIAS if(integer, toFloat64(word), reinterpretAsFloat64(word))""",
        _REPLACING,
        "run, series, time",
        "series",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "rollup",
        _POINT
        + """
    last Int64,                                       -- time of the last point; `time` is that of the first one
    points UInt32,
    stepped Bool,                                     -- whether each point has a step and they never decrease
    lowest_step Int64,
    highest_step Int64,
    blocks String CODEC(ZSTD(1)),                     -- encoded blocks"""
        + _ARRIVAL,
        _REPLACING,
        "run, series, time, last, points",
        "series",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "distributions",
        _POINT
        + """
    data String CODEC(ZSTD(3)),                       -- the OTLP data point without attributes"""
        + _ARRIVAL,
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
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),   -- time at which the sender reported a missing value"""
        + _ARRIVAL,
        _REPLACING,
        "run, series, time",
        "series",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "catalog",
        """
    run UInt64,
    metric LowCardinality(String),
    series UInt64,
    process SimpleAggregateFunction(anyLast, LowCardinality(String)),
    kind SimpleAggregateFunction(anyLast, LowCardinality(String)),
    scope SimpleAggregateFunction(anyLast, LowCardinality(String)),
    attributes SimpleAggregateFunction(anyLast, String) CODEC(ZSTD(1)),
    unit SimpleAggregateFunction(anyLast, LowCardinality(String)),
    description SimpleAggregateFunction(anyLast, String) CODEC(ZSTD(1))""",
        _ADDING,
        "run, metric, series",
        "series",
    ),
    Table(
        "summary",
        """
    run UInt64,
    series UInt64,
    minimum SimpleAggregateFunction(min, Float64),    -- of points that are not NaN; above the maximum if there are none
    maximum SimpleAggregateFunction(max, Float64),
    -- time, word, whether it is an integer, whether the step is known, the step, the step series
    last SimpleAggregateFunction(max, Tuple(Int64, Int64, UInt8, UInt8, Int64, UInt64)),
    first_step SimpleAggregateFunction(min, Int64) DEFAULT 9223372036854775807  -- lowest step; for attempts after the first""",
        _ADDING,
        "run, series",
        "series",
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
    first_step SimpleAggregateFunction(min, Int64),                          -- for attempts after the first
    began SimpleAggregateFunction(min, Int64),
    results SimpleAggregateFunction(max, Tuple(Int64, UInt64, String)),      -- what scripts wrote to the summary, as `config`
    definitions SimpleAggregateFunction(max, Tuple(Int64, UInt64, String)),
    parent SimpleAggregateFunction(max, Tuple(Int64, UInt64, String)),
    job_type """
        + _FIRST,
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
    digest FixedString(32),                           -- SHA-256 that distinguishes events at the same time
    id UInt64,
    key String,
    has_key UInt8,
    step Int64,
    has_step UInt8,
    body String CODEC(ZSTD(3)),                       -- JSON
    attributes String CODEC(ZSTD(3)),                 -- JSON object
    record String CODEC(ZSTD(3)),                     -- JSON object: severity, IDs and scope; "" in older rows
    precedence UInt64,
    received DateTime('UTC') CODEC(Delta, ZSTD(1))""",
        _REPLACING,
        "run, time, process, name, digest",
        "run",
        "toYYYYMM(received)",
        expires=True,
    ),
    Table(
        "log",
        """
    run UInt64,
    time Int64 CODEC(Delta, ZSTD(1)),
    digest Int64,                                     -- distinguishes lines of a run at the same time
    id Int64 CODEC(Delta, ZSTD(1)),
    process LowCardinality(String),
    severity UInt8,                                   -- severity number or 0
    stream UInt8,                                     -- 1: stdout, 2: stderr, 0: neither
    body String CODEC(ZSTD(3)),                       -- text, or JSON as stated in record
    attributes String CODEC(ZSTD(3)),                 -- JSON object or ""
    record String CODEC(ZSTD(3)),                     -- JSON object or "": other fields
    size UInt32 CODEC(ZSTD(1)),                       -- bytes of body, attributes and record
    commit UInt64 CODEC(Delta, ZSTD(1)),              -- number of the commit in `arrival`
    precedence UInt64 CODEC(Delta, ZSTD(1)),
    received DateTime('UTC') CODEC(Delta, ZSTD(1))""",
        _REPLACING,
        "run, time, digest",
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
    first Int64,                                      -- earliest time of a point in the commit
    metrics Array(LowCardinality(String)),
    events UInt8,                                     -- sum of 1 if there are events, and 2 if there are log lines
    read_all UInt8,                                   -- whether readers must read all points again
    series Array(UInt64)                              -- instead of metrics, if there are many""",
        "MergeTree",
        "received, run",
        "run",
        "toDate(received)",
        ttl="received + INTERVAL 1 DAY",
    ),
    Table(
        "annotation",
        """
    run UInt64,                                       -- 0 for the store itself
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
    """Return the statements that create the tables. Each statement can safely be repeated.

    Args:
        database: Name of the database.
        cluster: Name of the cluster in `system.clusters`; "" for a single server. Each server must define the macros
            {shard} and {replica}.
        retention_days: Days after arrival at which points, distributions, gaps, events, media and batch IDs are
            removed; None to keep them.
    """
    on = f" ON CLUSTER '{cluster}'" if cluster else ""
    texts = [f"CREATE DATABASE IF NOT EXISTS {database}{on}"]
    for table in TABLES:
        texts.append(_create(table, database, cluster, on, retention_days))
        if cluster:
            texts.append(
                f"CREATE TABLE IF NOT EXISTS {database}.{table.name}{on} AS {database}.{table.name}_local\n"
                f"ENGINE = Distributed('{cluster}', '{database}', '{table.name}_local', {table.shard})"
            )
    return texts


def prepare(address: Address, retention_days: float | None) -> Connection:
    """Connect, create missing tables, and upgrade tables from older versions.

    Raises:
        StoreError: The tables were created by a newer version.
        StoreUnavailableError: ClickHouse is unreachable or rejected a statement.
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
                f"{address} was created by a newer tensormeter (schema {version}; this one supports {SCHEMA_VERSION}); "
                "upgrade tensormeter, or choose another database"
            )
        if version < SCHEMA_VERSION:
            if "intent" in names:
                for statement in _complete():
                    connection.execute(statement)
            for statement in _upgrade(address.cluster, names, version) if version else ():
                connection.execute(statement)
            for statement in _move_lines(address.cluster) if version else ():
                connection.execute(statement)
            connection.execute(f"INSERT INTO annotation VALUES (0, 'schema', '{SCHEMA_VERSION}', {SCHEMA_VERSION})")
    except BaseException:
        connection.close()
        raise
    return connection


def _complete() -> Iterator[str]:
    """Yield statements that update the aggregates in version 2's table `series` after interrupted commits.

    Version 2 stored the points of a commit first, and updated `series` later.
    """
    unfinished = "FROM intent WHERE run != 0 AND number GLOBAL NOT IN (SELECT over FROM intent)"
    series = f"run GLOBAL IN (SELECT run {unfinished}) AND series GLOBAL IN (SELECT arrayJoin(series) {unfinished})"
    merged = ("process", "kind", "scope", "attributes", "unit", "description")
    extremes = "min(if(isNaN(value), inf, value)) AS low, max(if(isNaN(value), -inf, value)) AS high"
    for table, aggregates in (
        ("points", f"{extremes}, max((toUnixTimestamp64Nano(time), word, toUInt8(integer))) AS latest"),
        ("distributions", "inf AS low, -inf AS high, (max(toUnixTimestamp64Nano(time)), 0, 1) AS latest"),
    ):
        yield (
            f"INSERT INTO series (run, series, metric, {', '.join(merged)}, minimum, maximum, last)"
            f" SELECT run, series, metric, {', '.join(merged)}, low, high, (latest.1, latest.2, latest.3, 0, 0, steps) FROM"
            f" (SELECT run, series, metric, {', '.join(f'anyLast({name}) AS {name}' for name in merged)}"
            f" FROM series WHERE {series} GROUP BY run, series, metric) AS known"
            f" GLOBAL ANY INNER JOIN (SELECT run, series, {aggregates} FROM {table} FINAL WHERE {series}"
            f" AND time >= (SELECT fromUnixTimestamp64Nano(min(first), 'UTC') {unfinished})"
            " GROUP BY run, series) AS written USING (run, series)"
            " GLOBAL ANY LEFT JOIN (SELECT run, process, series AS steps FROM series"
            f" WHERE metric = '{STEP_METRIC}' AND kind = 'gauge' AND scope = '' AND attributes = '{{}}') AS stepped"
            " USING (run, process)"
        )


def _upgrade(cluster: str, names: Collection[str], version: int) -> Iterator[str]:
    """Yield statements that upgrade tables from older versions. Each statement can safely be repeated.

    Args:
        cluster: Name of the cluster, or "".
        names: Names of the existing tables.
        version: Version of the tables.
    """
    on = f" ON CLUSTER '{cluster}'" if cluster else ""
    local = "_local" if cluster else ""
    for suffix in dict.fromkeys((local, "")):
        yield f"ALTER TABLE points{suffix}{on} ADD COLUMN IF NOT EXISTS dense Bool AFTER integer"
        yield f"ALTER TABLE event{suffix}{on} ADD COLUMN IF NOT EXISTS record String AFTER attributes"
        yield f"ALTER TABLE arrival{suffix}{on} RENAME COLUMN IF EXISTS {_OLD_READ_ALL} TO read_all"
        yield f"ALTER TABLE arrival{suffix}{on} ADD COLUMN IF NOT EXISTS series Array(UInt64)"
        yield f"ALTER TABLE summary{suffix}{on} ADD COLUMN IF NOT EXISTS first_step {_FIRST_STEP}"
        for column in ("results", "definitions", "parent"):
            yield f"ALTER TABLE process{suffix}{on} ADD COLUMN IF NOT EXISTS {column} {_LATEST}"
        yield f"ALTER TABLE process{suffix}{on} ADD COLUMN IF NOT EXISTS job_type {_FIRST}"
    for suffix in dict.fromkeys(("", local)):
        yield f"DROP TABLE IF EXISTS intent{suffix}{on} SYNC"
    if "series" in names:
        for part in range(_PARTS):
            where = f"FROM series WHERE run BETWEEN {part * _PART} AND {(part + 1) * _PART - 1} AND run != 0"
            columns = "run, metric, series, process, kind, scope, attributes, unit, description"
            yield f"INSERT INTO catalog ({columns}) SELECT {columns} {where}"
            yield (
                "INSERT INTO summary (run, series, minimum, maximum, last)"
                f" SELECT run, series, minimum, maximum, last {where}"
            )
        for suffix in dict.fromkeys(("", local)):
            yield f"DROP TABLE IF EXISTS series{suffix}{on} SYNC"
    if version < 6:
        # Use the first step of a process for each of its metrics, because older versions did not store those of metrics.
        yield (
            "INSERT INTO summary (run, series, minimum, maximum, first_step)"
            " SELECT run, series, inf, -inf, step FROM (SELECT DISTINCT run, process, series FROM catalog) AS named"
            " GLOBAL ANY INNER JOIN (SELECT run, process, min(first_step) AS step FROM process GROUP BY run, process"
            f" HAVING step != {_NEVER}) AS began USING (run, process)"
        )


def _move_lines(cluster: str) -> Iterator[str]:
    """Yield statements that move events without a name, which were log lines before version 6, to their table."""
    on = f" ON CLUSTER '{cluster}'" if cluster else ""
    local = "_local" if cluster else ""
    stream = "JSONExtractString(attributes, 'log.iostream')"
    text = "startsWith(body, '\"')"
    for part in range(_PARTS):
        yield (
            "INSERT INTO log (run, time, digest, id, process, severity, stream, body, attributes, record, size, commit,"
            " precedence, received) SELECT run, time, bitShiftRight(reinterpretAsInt64(digest), 1), id, process,"
            f" JSONExtractUInt(record, 'severity_number'), if({stream} = 'stdout', 1, if({stream} = 'stderr', 2, 0)),"
            f" if({text}, JSONExtractString(body), body), attributes,"
            f" if({text}, record, concat('{{\"json\":true', if(length(record) > 2, concat(',', substring(record, 2)), '}}'))),"
            " length(body) + length(attributes) + length(record), 0, precedence, received FROM event FINAL"
            f" WHERE name = '' AND run BETWEEN {part * _PART} AND {(part + 1) * _PART - 1}"
        )
    yield f"ALTER TABLE event{local}{on} DELETE WHERE name = '' SETTINGS mutations_sync = 2"


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
    return "\n".join(lines)
