-- Tables for the Collector's `clickhouse` exporter with `create_schema: false` (see gateway.yaml).
--
-- Column names and types are those of the exporter, with these differences:
--   * Times are DateTime64(9), because a training step can be shorter than a second.
--   * The engine is ReplacingMergeTree, with the series and the time as its key. Duplicate points become one row when parts are
--     merged, and immediately in queries with FINAL.
--   * Rows are sorted by run, so that the series of a run are stored together.
-- Run this file once:  clickhouse-client --multiquery < clickhouse.sql
-- On a cluster, add `ON CLUSTER ...` and use ReplicatedReplacingMergeTree.

CREATE DATABASE IF NOT EXISTS tensormeter;

CREATE TABLE IF NOT EXISTS tensormeter.otel_metrics_gauge
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl LowCardinality(String),
    ScopeName LowCardinality(String),
    ScopeVersion LowCardinality(String),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl LowCardinality(String),
    ServiceName LowCardinality(String),
    MetricName LowCardinality(String),
    MetricDescription LowCardinality(String),
    MetricUnit LowCardinality(String),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    Value Float64 CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    Exemplars Nested (FilteredAttributes Map(LowCardinality(String), String), TimeUnix DateTime64(9), Value Float64, SpanId String, TraceId String) CODEC(ZSTD(1)),
    RunId LowCardinality(String) MATERIALIZED ResourceAttributes['tensormeter.run.id'],
    Process String MATERIALIZED ResourceAttributes['service.instance.id']
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(TimeUnix)
ORDER BY (ServiceName, RunId, MetricName, Process, cityHash64(Attributes), TimeUnix);

CREATE TABLE IF NOT EXISTS tensormeter.otel_metrics_sum
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl LowCardinality(String),
    ScopeName LowCardinality(String),
    ScopeVersion LowCardinality(String),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl LowCardinality(String),
    ServiceName LowCardinality(String),
    MetricName LowCardinality(String),
    MetricDescription LowCardinality(String),
    MetricUnit LowCardinality(String),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    Value Float64 CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    Exemplars Nested (FilteredAttributes Map(LowCardinality(String), String), TimeUnix DateTime64(9), Value Float64, SpanId String, TraceId String) CODEC(ZSTD(1)),
    AggregationTemporality Int32 CODEC(ZSTD(1)),
    IsMonotonic Boolean CODEC(Delta, ZSTD(1)),
    RunId LowCardinality(String) MATERIALIZED ResourceAttributes['tensormeter.run.id'],
    Process String MATERIALIZED ResourceAttributes['service.instance.id']
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(TimeUnix)
ORDER BY (ServiceName, RunId, MetricName, Process, cityHash64(Attributes), TimeUnix);

CREATE TABLE IF NOT EXISTS tensormeter.otel_metrics_histogram
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl LowCardinality(String),
    ScopeName LowCardinality(String),
    ScopeVersion LowCardinality(String),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl LowCardinality(String),
    ServiceName LowCardinality(String),
    MetricName LowCardinality(String),
    MetricDescription LowCardinality(String),
    MetricUnit LowCardinality(String),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    Count UInt64 CODEC(Delta, ZSTD(1)),
    Sum Float64 CODEC(ZSTD(1)),
    BucketCounts Array(UInt64) CODEC(ZSTD(1)),
    ExplicitBounds Array(Float64) CODEC(ZSTD(1)),
    Exemplars Nested (FilteredAttributes Map(LowCardinality(String), String), TimeUnix DateTime64(9), Value Float64, SpanId String, TraceId String) CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    Min Float64 CODEC(ZSTD(1)),
    Max Float64 CODEC(ZSTD(1)),
    AggregationTemporality Int32 CODEC(ZSTD(1)),
    RunId LowCardinality(String) MATERIALIZED ResourceAttributes['tensormeter.run.id'],
    Process String MATERIALIZED ResourceAttributes['service.instance.id']
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(TimeUnix)
ORDER BY (ServiceName, RunId, MetricName, Process, cityHash64(Attributes), TimeUnix);

CREATE TABLE IF NOT EXISTS tensormeter.otel_metrics_exp_histogram
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl LowCardinality(String),
    ScopeName LowCardinality(String),
    ScopeVersion LowCardinality(String),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl LowCardinality(String),
    ServiceName LowCardinality(String),
    MetricName LowCardinality(String),
    MetricDescription LowCardinality(String),
    MetricUnit LowCardinality(String),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    Count UInt64 CODEC(Delta, ZSTD(1)),
    Sum Float64 CODEC(ZSTD(1)),
    Scale Int32 CODEC(ZSTD(1)),
    ZeroCount UInt64 CODEC(ZSTD(1)),
    PositiveOffset Int32 CODEC(ZSTD(1)),
    PositiveBucketCounts Array(UInt64) CODEC(ZSTD(1)),
    NegativeOffset Int32 CODEC(ZSTD(1)),
    NegativeBucketCounts Array(UInt64) CODEC(ZSTD(1)),
    Exemplars Nested (FilteredAttributes Map(LowCardinality(String), String), TimeUnix DateTime64(9), Value Float64, SpanId String, TraceId String) CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    Min Float64 CODEC(ZSTD(1)),
    Max Float64 CODEC(ZSTD(1)),
    AggregationTemporality Int32 CODEC(ZSTD(1)),
    RunId LowCardinality(String) MATERIALIZED ResourceAttributes['tensormeter.run.id'],
    Process String MATERIALIZED ResourceAttributes['service.instance.id']
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(TimeUnix)
ORDER BY (ServiceName, RunId, MetricName, Process, cityHash64(Attributes), TimeUnix);

CREATE TABLE IF NOT EXISTS tensormeter.otel_metrics_summary
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl LowCardinality(String),
    ScopeName LowCardinality(String),
    ScopeVersion LowCardinality(String),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl LowCardinality(String),
    ServiceName LowCardinality(String),
    MetricName LowCardinality(String),
    MetricDescription LowCardinality(String),
    MetricUnit LowCardinality(String),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    Count UInt64 CODEC(Delta, ZSTD(1)),
    Sum Float64 CODEC(ZSTD(1)),
    ValueAtQuantiles Nested (Quantile Float64, Value Float64) CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    RunId LowCardinality(String) MATERIALIZED ResourceAttributes['tensormeter.run.id'],
    Process String MATERIALIZED ResourceAttributes['service.instance.id']
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(TimeUnix)
ORDER BY (ServiceName, RunId, MetricName, Process, cityHash64(Attributes), TimeUnix);

CREATE TABLE IF NOT EXISTS tensormeter.otel_logs
(
    Timestamp DateTime64(9) CODEC(Delta, ZSTD(1)),
    TraceId String CODEC(ZSTD(1)),
    SpanId String CODEC(ZSTD(1)),
    TraceFlags UInt8,
    SeverityText LowCardinality(String),
    SeverityNumber UInt8,
    ServiceName LowCardinality(String),
    Body String CODEC(ZSTD(3)),
    ResourceSchemaUrl LowCardinality(String),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeSchemaUrl LowCardinality(String),
    ScopeName LowCardinality(String),
    ScopeVersion LowCardinality(String),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    LogAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    EventName LowCardinality(String),
    RunId LowCardinality(String) MATERIALIZED ResourceAttributes['tensormeter.run.id'],
    Process String MATERIALIZED ResourceAttributes['service.instance.id']
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(Timestamp)
ORDER BY (ServiceName, RunId, EventName, Process, Timestamp, cityHash64(LogAttributes));

-- Example: a metric by step. The step is the gauge `tensormeter.step` of the same process at the same time.
--
--   SELECT step.Value AS step, loss.Value AS loss
--   FROM tensormeter.otel_metrics_gauge AS loss FINAL
--   INNER JOIN tensormeter.otel_metrics_gauge AS step FINAL USING (ServiceName, RunId, Process, TimeUnix)
--   WHERE loss.MetricName = 'train/loss' AND step.MetricName = 'tensormeter.step' AND RunId = '7hd8s2ka'
--   ORDER BY step
