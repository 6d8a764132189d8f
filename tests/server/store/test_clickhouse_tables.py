"""The address of a ClickHouse, and the tables that are made in it."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from support.otlp import Requests
from support.stores import append_batches, append_events
from tensormeter.errors import SettingsError, StoreError
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.server.store import RunRef, Selection, StoreUnavailableError
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.schema import TABLES, statements

T0 = 1_750_000_000_000_000_000
FORMER_READ_ALL = "anew"
"""Name of the column `read_all` in former versions."""
INTENT = "number UInt64, run UInt64, over UInt64, first Int64, series Array(UInt64)"
"""Columns of version 2's table `intent`, as far as an upgrade needs them."""

DESCRIPTIONS = ("process", "kind", "scope", "attributes", "unit", "description")
SERIES = f"""run UInt64, series UInt64, metric LowCardinality(String),
    {", ".join(f"{name} SimpleAggregateFunction(anyLast, String)" for name in DESCRIPTIONS)},
    minimum SimpleAggregateFunction(min, Float64), maximum SimpleAggregateFunction(max, Float64),
    last SimpleAggregateFunction(max, Tuple(Int64, Int64, UInt8, UInt8, Int64, UInt64))"""
"""Columns of the table `series` of version 3, which contained what `catalog` and `summary` contain now."""


def make_former_series(connection):
    """Replaces the present tables by that of version 3, with the same rows."""
    order = "PRIMARY KEY (run, series) ORDER BY (run, series, metric)"
    connection.execute(f"CREATE TABLE series ({SERIES}) ENGINE = AggregatingMergeTree {order}")
    columns = f"run, series, metric, {', '.join(DESCRIPTIONS)}, minimum, maximum, last"
    connection.execute(
        f"INSERT INTO series SELECT {columns} FROM catalog FINAL INNER JOIN (SELECT * FROM summary FINAL) AS summary"
        " USING (run, series)"
    )
    connection.execute("DROP TABLE catalog")
    connection.execute("DROP TABLE summary")
    connection.execute("ALTER TABLE arrival DROP COLUMN series")


def test_addresses():
    address = parse_address(
        "clickhouse://us%40er@host:9000/db?secure=true&cluster=main&insert_quorum=auto",
        {"TENSORMETER_CLICKHOUSE_PASSWORD": "hidden"},
    )
    assert (address.user, address.host, address.port, address.database) == ("us@er", "host", 9000, "db")
    assert (address.secure, address.cluster, dict(address.settings)) == (True, "main", {"insert_quorum": "auto"})
    assert address.password == "hidden"
    assert "hidden" not in repr(address) + str(address)
    plain = parse_address("clickhouse://host", {"TENSORMETER_CLICKHOUSE_USER": "u"})
    assert (plain.user, plain.port, plain.database, plain.password) == ("u", 8123, "tensormeter", "")
    assert parse_address("clickhouse://h?secure=true", {}).port == 8443
    for text in ("http://h", "clickhouse://", "clickhouse://h/a.b", "clickhouse://h?secure=1", "clickhouse://h:x",
                 "clickhouse://h?cluster=a'b", "clickhouse://h?a;b=1"):  # fmt: skip
        with pytest.raises(SettingsError):
            parse_address(text, {})


def test_the_tables_of_a_cluster(clickhouse):
    """There is no cluster here: that ClickHouse understands the statements, and that they say what they must."""
    address = parse_address(f"clickhouse://127.0.0.1:{clickhouse}/tables", {})
    ClickHouseStore(address).close()
    connection = Connection(address)
    made = statements("db", cluster="main", retention_days=30)
    try:
        for statement in made:
            connection.rows("SELECT formatQuery({text:String})", text=statement)
        with pytest.raises(StoreUnavailableError, match="Syntax error"):
            connection.rows("SELECT formatQuery({text:String})", text=made[1].replace("ENGINE", "ENGIN"))
    finally:
        connection.close()
    assert len(made) == 1 + 2 * len(TABLES)
    assert all("ON CLUSTER 'main'" in statement for statement in made)
    local = [statement for statement in made if "_local ON" in statement]
    assert len(local) == len(TABLES)
    for statement in local:
        name = re.search(r"db\.(\w+) ON", statement)[1]
        assert re.search(rf"ENGINE = Replicated\w+\('/clickhouse/tables/{{shard}}/db/{name}', '{{replica}}'", statement)
    assert sum("ENGINE = Distributed('main', 'db'" in statement for statement in made) == len(TABLES)
    assert sum("TTL received + INTERVAL 2592000 SECOND" in statement for statement in made) == 8


def test_the_statements_can_be_printed():
    command = [sys.executable, "-m", "tensormeter", "serve", "--print-schema"]
    address = ["--store", "clickhouse://h/db?cluster=main", "--retention-days", "30"]
    done = subprocess.run([*command, *address], capture_output=True, text=True, timeout=300, check=True)
    assert [part.strip() for part in done.stdout.split(";\n")[:-1]] == statements("db", "main", 30)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "SQLite creates its tables itself" in done.stderr) == (1, True)


def test_points_take_ten_bytes_and_old_ones_go(clickhouse):
    where = parse_address(f"clickhouse://127.0.0.1:{clickhouse}/lean", {})
    store = ClickHouseStore(where, commit_interval=0, retention_days=1)
    connection = Connection(where, "lean")
    try:
        n = 200_000
        noise = np.random.default_rng(0)
        times = (T0 + np.cumsum(noise.integers(90_000_000, 110_000_000, n))).astype(np.uint64)
        gauge = Gauge("v", times, noise.normal(size=n).astype(np.float32).astype(np.float64))
        append_batches(store, Batch({"tensormeter.run.id": "r"}, [gauge]))
        stored = connection.rows(
            "SELECT sum(data_compressed_bytes) FROM system.parts WHERE database = 'lean' AND table = 'points' AND active"
        )[0][0]
        assert stored / n < 10
        assert connection.rows("SELECT count(), countIf(isNaN(value)) FROM points WHERE received > now() - 3600")[
            0
        ] == [n, 0]
        (series,) = store.read(RunRef("r"), Selection(["v"])).series
        assert series.points.words.tobytes() == gauge.values.tobytes()
        connection.execute("INSERT INTO points (run, series, time, word, integer, received) VALUES (1, 1, 1, 1, 1, 1)")
        connection.execute("OPTIMIZE TABLE points FINAL")
        assert connection.rows("SELECT count() FROM points") == [[n]]
    finally:
        connection.close()
        store.close()


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_tables_of_older_versions_are_brought_up_to_date(clickhouse, make, version):
    """Version 1 had no severity of events; both stored sums, and version 2 also intents and marks in rows of run 0.

    Versions 1 to 4 stored no rollups, and versions 1 to 5 neither results nor first steps of metrics,
    and versions 1 to 6 no job types.
    """
    database = f"version{version}"
    where = parse_address(f"clickhouse://127.0.0.1:{clickhouse}/{database}", {})
    store = ClickHouseStore(where)
    batch = make.rows("r", [(T0 + step, step, {"v": 1.0 + step}) for step in range(3)])
    append_batches(store, batch)
    store.close()
    connection = Connection(where, database)
    try:
        connection.execute("ALTER TABLE process DROP COLUMN job_type")
        if version < 6:
            connection.execute("ALTER TABLE summary DROP COLUMN first_step")
            for column in ("results", "definitions", "parent"):
                connection.execute(f"ALTER TABLE process DROP COLUMN {column}")
        if version < 5:
            connection.execute("ALTER TABLE points DROP COLUMN dense")
            connection.execute("DROP TABLE rollup")
        if version < 4:
            make_former_series(connection)
        if version < 3:
            for name, kind in (("count", "UInt64"), ("numbers", "UInt64"), ("total", "Float64")):
                connection.execute(f"ALTER TABLE series ADD COLUMN {name} SimpleAggregateFunction(sum, {kind})")
            connection.execute(f"ALTER TABLE arrival RENAME COLUMN read_all TO {FORMER_READ_ALL}")
            connection.execute("INSERT INTO series (run, series, count) VALUES (0, 1, 1)")
        if version == 1:
            connection.execute("ALTER TABLE event DROP COLUMN record")
        if version == 2:
            connection.execute(f"CREATE TABLE intent ({INTENT}) ENGINE = MergeTree ORDER BY number")
        connection.execute("TRUNCATE TABLE annotation")
        connection.execute(f"INSERT INTO annotation VALUES (0, 'schema', '{version}', {version})")
        ClickHouseStore(where).close()
        store = ClickHouseStore(where)
        append_batches(store, batch)
        run = store.run(RunRef("r"))
        assert (run.points, run.summary["v"].count, run.summary["v"].mean, run.summary["v"].max) == (6, 3, 2.0, 3.0)
        resource = {"tensormeter.run.id": "r", "service.name": "demo", "service.instance.id": "later"}
        append_events(store, resource, Event("tensormeter.run.start", T0 + 9, {"job_type": "eval"}))
        assert (run.job_type, store.run(RunRef("r")).job_type) == ("", "eval")
        store.close()
        tables = connection.rows("SELECT name FROM system.tables WHERE database = currentDatabase()")
        assert {name for (name,) in tables} == {table.name for table in TABLES}
        assert connection.rows("SELECT count() FROM catalog FINAL") == [[2]]
        assert connection.rows("SELECT value FROM annotation FINAL WHERE field = 'schema'") == [["7"]]
        assert len(connection.rows("SELECT record FROM event")) == 1
    finally:
        connection.close()


def test_points_that_version_2_had_not_counted_yet_are_in_the_summary(clickhouse, make, monkeypatch):
    """A server of version 2 died after its points, and another answered the retry, which finds them stored: only intents name them."""
    where = parse_address(f"clickhouse://127.0.0.1:{clickhouse}/unfinished", {})
    store = ClickHouseStore(where)
    connection = Connection(where, "unfinished")
    insert = Connection.insert
    try:
        with monkeypatch.context() as patch:
            for rows, shapes in (
                ([(T0 + step, step, {"v": 1.0 + step}) for step in range(3)], [Requests.histogram("h", T0)]),
                ([(T0 + 3, 3, {"v": 9.0}), (T0 + 4, 4, {"v": math.nan})], [Requests.histogram("h", T0 + 4)]),
            ):
                batch = make.rows("r", rows)
                append_batches(store, replace(batch, series=[*batch.series, *shapes]))
                patch.setattr(
                    Connection, "insert", lambda self, table, *rest: table == "summary" or insert(self, table, *rest)
                )
        store.close()
        make_former_series(connection)
        for name, kind in (("count", "UInt64"), ("numbers", "UInt64"), ("total", "Float64")):
            connection.execute(f"ALTER TABLE series ADD COLUMN {name} SimpleAggregateFunction(sum, {kind})")
        connection.execute(f"ALTER TABLE arrival RENAME COLUMN read_all TO {FORMER_READ_ALL}")
        connection.execute(f"CREATE TABLE intent ({INTENT}) ENGINE = MergeTree ORDER BY number")
        connection.execute(
            f"INSERT INTO intent SELECT 7, run, 0, {T0 + 3}, groupArray(series) FROM series GROUP BY run"
        )
        connection.execute("TRUNCATE TABLE annotation")
        connection.execute("INSERT INTO annotation VALUES (0, 'schema', '2', 2)")
        store = ClickHouseStore(where)
        summary = store.run(RunRef("r")).summary["v"]
        assert (summary.count, summary.min, summary.max, summary.mean) == (5, 1.0, 9.0, 3.75)
        assert math.isnan(summary.last)
        assert (summary.last_step, summary.last_time) == (4, T0 + 4)
        assert {metric.metric: metric.last_time for metric in store.metrics(RunRef("r"))} == dict.fromkeys(
            (STEP_METRIC, "v", "h"), T0 + 4
        )
    finally:
        connection.close()
        store.close()


def test_tables_of_a_newer_version_are_refused(clickhouse):
    where = parse_address(f"clickhouse://127.0.0.1:{clickhouse}/newer", {})
    ClickHouseStore(where).close()
    connection = Connection(where, "newer")
    connection.execute("INSERT INTO annotation VALUES (0, 'schema', '99', 99)")
    connection.close()
    with pytest.raises(StoreError, match="newer tensormeter"):
        ClickHouseStore(where)
