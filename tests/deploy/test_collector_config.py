"""The Collector's configurations: whole, explained, without secrets; and run on a real Collector where there is one."""

import re
import subprocess
import sys
from pathlib import Path

import clickhouse_connect
import pytest
import urllib3
import yaml

from support.ports import reserve_port
from support.processes import run_python
from support.programs import needs, program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "collector-config"
FILES = sorted(FOLDER.glob("*.yaml"))
COLLECTOR = program("OTELCOL")

TEXT, FLAG, COUNT, DURATION = str, bool, "a number from 0", "a duration"
SIZER = {"requests", "items", "bytes"}
TLS = {"cert_file": TEXT, "key_file": TEXT}
AUTH = {"authenticator": TEXT}
RETRY = {"enabled": FLAG, "initial_interval": DURATION, "max_interval": DURATION, "max_elapsed_time": DURATION}
BATCH = {"sizer": SIZER - {"requests"}, "min_size": COUNT, "max_size": COUNT, "flush_timeout": DURATION}
QUEUE = {
    "enabled": FLAG, "storage": TEXT, "sizer": SIZER, "queue_size": COUNT, "block_on_overflow": FLAG, "num_consumers": COUNT,
    "batch": BATCH,
}  # fmt: skip
CLIENT = {"endpoint": TEXT, "compression": TEXT, "headers": {"authorization": TEXT}, "timeout": DURATION}
TABLES = ("gauge", "sum", "summary", "histogram", "exponential_histogram")

# Keys and types of what we use of the distribution `contrib`, 0.159, from the `mapstructure` tags in its sources: the Collector
# refuses to start with any other key.
KNOWN = {
    "extensions": {
        "file_storage": {
            "directory": TEXT, "create_directory": FLAG, "fsync": FLAG, "timeout": DURATION,
            "compaction": {"on_start": FLAG, "on_rebound": FLAG, "directory": TEXT},
        },
        "health_check": {"endpoint": TEXT},
        "bearertokenauth": {"token": TEXT},
    },
    "receivers": {
        "otlp": {
            "protocols": {
                "grpc": {"endpoint": TEXT, "max_recv_msg_size_mib": COUNT, "auth": AUTH, "tls": TLS},
                "http": {"endpoint": TEXT, "max_request_body_size": COUNT, "auth": AUTH, "tls": TLS},
            },
        },
    },
    "processors": {
        "memory_limiter": {
            "check_interval": DURATION, "limit_mib": COUNT, "spike_limit_mib": COUNT, "limit_percentage": COUNT,
            "spike_limit_percentage": COUNT,
        },
    },
    "exporters": {
        "otlp_http": CLIENT | {"retry_on_failure": RETRY, "sending_queue": QUEUE},
        "prometheusremotewrite": CLIENT | {
            "retry_on_failure": RETRY, "add_metric_suffixes": FLAG, "target_info": {"enabled": FLAG},
            "resource_to_telemetry_conversion": {"enabled": FLAG},
            "remote_write_queue": {"enabled": FLAG, "queue_size": COUNT, "num_consumers": COUNT},
        },
        "clickhouse": {
            "endpoint": TEXT, "username": TEXT, "password": TEXT, "database": TEXT, "create_schema": FLAG, "async_insert": FLAG,
            "timeout": DURATION, "retry_on_failure": RETRY, "sending_queue": QUEUE,
            "metrics_tables": {kind: {"name": TEXT} for kind in TABLES},
        },
        "debug": {"verbosity": {"basic", "normal", "detailed"}},
    },
}  # fmt: skip


def check(path, content, known):
    """Every key is known, and what it holds is of its kind."""
    if isinstance(known, dict):
        assert isinstance(content, dict), path
        for key, value in content.items():
            assert key in known, f"{path}: no key {key}"
            check(f"{path}.{key}", value, known[key])
    elif known == COUNT:
        assert type(content) is int, f"{path}: {content!r}"
        assert content >= 0, f"{path}: {content!r}"
    elif known == DURATION:
        assert re.fullmatch(r"\d+(ms|s|m|h)", str(content)), f"{path}: {content!r}"
    elif isinstance(known, set):
        assert content in known, f"{path}: {content!r}"
    else:
        assert type(content) is known, f"{path}: {content!r}"


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_everything_is_defined_and_used(path):
    config = load(path)
    pipelines = config["service"]["pipelines"]
    assert set(pipelines) == {"metrics", "logs"}
    used = {"extensions": set(config["service"]["extensions"])}
    for kind in ("receivers", "processors", "exporters"):
        used[kind] = {name for pipeline in pipelines.values() for name in pipeline[kind]}
    for kind, known in KNOWN.items():
        assert set(config[kind]) == used[kind], kind
        for name, content in config[kind].items():
            check(f"{kind}.{name}", content, known[name.partition("/")[0]])
    for pipeline in pipelines.values():
        assert pipeline["processors"][0] == "memory_limiter"
        assert "batch" not in pipeline["processors"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_accepted_data_waits_on_disk_until_it_is_delivered(path):
    """Every destination tries for ever, and every queue that can be is on disk and lets its sender wait."""
    exporters = load(path)["exporters"]
    for name, exporter in exporters.items():
        if name == "debug":
            continue
        if "retry_on_failure" in exporter:
            assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"
        if name != "prometheusremotewrite":
            assert exporter["sending_queue"]["storage"] == "file_storage"
            assert exporter["sending_queue"]["block_on_overflow"] is True
            assert "batch" in exporter["sending_queue"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_configurations_keep_the_rules_that_the_collector_checks(path):
    config = load(path)
    limiter = config["processors"]["memory_limiter"]
    assert limiter["check_interval"] != "0s"
    for unit in ("mib", "percentage"):
        assert limiter.get(f"spike_limit_{unit}", 0) < limiter.get(f"limit_{unit}", 1)
    assert ("limit_mib" in limiter) != ("limit_percentage" in limiter)
    assert set(config["service"]) == {"extensions", "telemetry", "pipelines"}
    assert config["service"]["telemetry"] == {"metrics": {"level": "none"}}
    for exporter in config["exporters"].values():
        queue = exporter.get("sending_queue")
        if queue is None:
            continue
        assert queue["storage"] in config["extensions"]
        batch = {"sizer": queue.get("sizer", "items"), "min_size": 8192, "max_size": 0} | queue["batch"]
        assert batch["sizer"] != "requests"
        assert batch["max_size"] == 0 or batch["min_size"] <= batch["max_size"]
        if batch["sizer"] == queue.get("sizer", "requests"):
            assert batch["min_size"] <= queue["queue_size"]
    storage = config["extensions"]["file_storage"]
    assert storage["create_directory"]
    if "compaction" in storage:
        assert storage["compaction"]["directory"] == storage["directory"]  # which is there by then
    for protocol in config["receivers"]["otlp"]["protocols"].values():
        authenticator = protocol.get("auth", {}).get("authenticator")
        assert authenticator is None or authenticator in config["extensions"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_variables_are_explained_and_no_secret_is_written(path):
    text = path.read_text()
    header = text[: text.index("\nextensions:")]
    for variable in re.findall(r"\$\{env:(\w+)", text):
        assert variable in header, variable
    config = text[text.index("\nextensions:") :]
    for line in config.splitlines():
        if re.search(r"(token|password|authorization):", line):
            assert "${env:" in line


def test_only_the_gateway_listens_for_other_machines_and_it_wants_a_token():
    for protocol in load(FOLDER / "agent.yaml")["receivers"]["otlp"]["protocols"].values():
        assert protocol["endpoint"].startswith("127.0.0.1:")
    for protocol in load(FOLDER / "dev.yaml")["receivers"]["otlp"]["protocols"].values():
        assert protocol["endpoint"].startswith("${env:OTELCOL_HOST:-127.0.0.1}:")
    for protocol in load(FOLDER / "gateway.yaml")["receivers"]["otlp"]["protocols"].values():
        assert protocol["auth"] == {"authenticator": "bearertokenauth"}
        assert protocol["tls"]["key_file"]


def test_the_queue_of_the_readme_is_the_queue_of_the_file():
    readme = (FOLDER / "README.md").read_text()
    size = load(FOLDER / "agent.yaml")["exporters"]["otlp_http"]["sending_queue"]["queue_size"]
    assert f"is {size >> 30} GiB" in readme
    assert all(path.name in readme for path in FILES)
    rows = re.findall(
        r"^\| (\d+) ranks, (\d+) metrics per step, (\d+) steps per second \| ([\d,]+) \| ([\d.]+) (MB|GB)",
        readme,
        re.MULTILINE,
    )
    assert len(rows) == 3
    for ranks, metrics, steps, points, amount, unit in rows:
        expected = int(ranks) * int(steps) * (int(metrics) + 1)
        assert int(points.replace(",", "")) == expected
        size = float(amount) * {"MB": 1e6, "GB": 1e9}[unit]
        assert size == pytest.approx(expected * 20 * 3600, rel=0.03)


def test_clickhouse_keeps_nanoseconds():
    sql = re.sub(r"--.*", "", (FOLDER / "clickhouse.sql").read_text())
    tables = re.findall(r"CREATE TABLE IF NOT EXISTS (\S+)", sql)
    database = load(FOLDER / "gateway.yaml")["exporters"]["clickhouse"]["database"]
    assert {table.partition(".")[0] for table in tables} == {database}
    assert {table.partition(".")[2] for table in tables} == {
        "otel_logs", "otel_metrics_gauge", "otel_metrics_sum", "otel_metrics_histogram", "otel_metrics_exp_histogram",
        "otel_metrics_summary",
    }  # fmt: skip
    named = load(FOLDER / "gateway.yaml")["exporters"]["clickhouse"]["metrics_tables"]
    for kind in TABLES:
        table = named.get(kind, {}).get("name", f"otel_metrics_{kind}")
        assert f"{database}.{table}" in tables
    for kind in re.findall(r"(?:TimeUnix|Timestamp) (DateTime\S*)", sql):
        assert kind.startswith("DateTime64(9)")
    assert sql.count("ENGINE = ReplacingMergeTree") == len(tables)


METRIC = (
    "ResourceAttributes, ResourceSchemaUrl, ScopeName, ScopeVersion, ScopeAttributes, ScopeDroppedAttrCount, ScopeSchemaUrl,"
    " ServiceName, MetricName, MetricDescription, MetricUnit, Attributes, StartTimeUnix, TimeUnix"
)
EXEMPLARS = "Exemplars.FilteredAttributes, Exemplars.TimeUnix, Exemplars.Value, Exemplars.SpanId, Exemplars.TraceId"
RESOURCE = "map('service.name', 'p', 'tensormeter.run.id', 'r', 'service.instance.id', 'i')"
POINT = f"{RESOURCE}, '', 'tensormeter', '1', map(), 0, '', 'p', 'loss', '', '1', map('k', 'v'), {{start}}, {{time}}"
NO_EXEMPLARS = "[], [], [], [], []"
# What the exporter inserts, by table: columns in its order, and values.
INSERTS = {
    "otel_metrics_gauge": (f"{METRIC}, Value, Flags, {EXEMPLARS}", f"{POINT}, 0.5, 0, {NO_EXEMPLARS}"),
    "otel_metrics_sum": (
        f"{METRIC}, Value, Flags, {EXEMPLARS}, AggregationTemporality, IsMonotonic",
        f"{POINT}, 0.5, 0, [map('a', 'b')], [{{time}}], [1.5], ['s'], ['t'], 2, true",
    ),
    "otel_metrics_histogram": (
        f"{METRIC}, Count, Sum, BucketCounts, ExplicitBounds, {EXEMPLARS}, Flags, Min, Max, AggregationTemporality",
        f"{POINT}, 3, 4.5, [1, 2], [1.0], {NO_EXEMPLARS}, 0, 1.0, 2.0, 1",
    ),
    "otel_metrics_exp_histogram": (
        (
            f"{METRIC}, Count, Sum, Scale, ZeroCount, PositiveOffset, PositiveBucketCounts, NegativeOffset,"
            f" NegativeBucketCounts, {EXEMPLARS}, Flags, Min, Max, AggregationTemporality"
        ),
        f"{POINT}, 3, 4.5, 3, 0, -1, [1, 2], 0, [], {NO_EXEMPLARS}, 0, 1.0, 2.0, 1",
    ),
    "otel_metrics_summary": (
        f"{METRIC}, Count, Sum, ValueAtQuantiles.Quantile, ValueAtQuantiles.Value, Flags",
        f"{POINT}, 3, 4.5, [0.5], [1.5], 0",
    ),
    "otel_logs": (
        (
            "Timestamp, TraceId, SpanId, TraceFlags, SeverityText, SeverityNumber, ServiceName, Body, ResourceSchemaUrl,"
            " ResourceAttributes, ScopeSchemaUrl, ScopeName, ScopeVersion, ScopeAttributes, LogAttributes, EventName"
        ),
        f"{{time}}, '', '', 0, 'INFO', 9, 'p', 'body', '', {RESOURCE}, '', 'tensormeter', '1', map(), map('a', 'b'), 'note'",
    ),
}


def test_clickhouse_takes_what_the_exporter_inserts(clickhouse):
    """The statements of the file run on the engine, and rows as the Collector's exporter writes them arrive once, to the nanosecond."""
    client = clickhouse_connect.get_client(port=clickhouse)
    try:
        for statement in re.sub(r"--.*", "", (FOLDER / "clickhouse.sql").read_text()).split(";"):
            if statement.strip():
                client.command(statement)
        time = 1_750_000_000_123_456_789
        for table, (columns, values) in INSERTS.items():
            moment = f"fromUnixTimestamp64Nano({time}, 'UTC')"
            row = values.format(time=moment, start=moment)
            for _ in range(2):  # a Collector may send twice
                client.command(f"INSERT INTO tensormeter.{table} ({columns}) VALUES ({row})")
            column = "Timestamp" if table == "otel_logs" else "TimeUnix"
            stored_rows = client.raw_query(
                f"SELECT toUnixTimestamp64Nano({column}), ServiceName, RunId, Process FROM tensormeter.{table} FINAL",
                fmt="TSV",
            )
            assert stored_rows.decode() == f"{time}\tp\tr\ti\n"
        (query,) = re.findall(r"SELECT step\.Value.*ORDER BY step", (FOLDER / "clickhouse.sql").read_text(), re.DOTALL)
        for name, moment, value in (("train/loss", 1, 0.25), ("tensormeter.step", 1, 7), ("train/loss", 2, 0.5)):
            columns, values = INSERTS["otel_metrics_gauge"]
            at = f"fromUnixTimestamp64Nano({moment}, 'UTC')"
            row = values.format(time=at, start=at).replace("'loss'", f"'{name}'").replace("0.5", str(value))
            row = row.replace("'r'", "'7hd8s2ka'")
            client.command(f"INSERT INTO tensormeter.otel_metrics_gauge ({columns}) VALUES ({row})")
        assert client.raw_query(query.replace("\n--", "\n"), fmt="TSV").decode() == "7\t0.25\n"
    finally:
        client.close()


needs_collector = pytest.mark.skipif(COLLECTOR is None, reason="no otelcol or otelcol-contrib on PATH, nor OTELCOL")

TRAINER = """
import tensormeter
with tensormeter.init(project="collected", id="r", config={"lr": 1}) as run:
    for step in range(100):
        run.log({"loss": 1 / (step + 1)}, step)
"""


@needs("OTELCOL")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_real_collector_accepts_it(path, tmp_path, clean_environment):
    assert COLLECTOR is not None
    names = re.findall(r"\$\{env:(\w+)", path.read_text())
    values = dict.fromkeys(names, "http://127.0.0.1:1") | {
        "OTELCOL_HOST": "127.0.0.1",
        "OTELCOL_STORAGE": str(tmp_path),
    }
    values |= {"CLICKHOUSE_ENDPOINT": "tcp://127.0.0.1:9000"} if "CLICKHOUSE_ENDPOINT" in names else {}
    command = [COLLECTOR, "validate", "--config", str(path)]
    done = subprocess.run(command, env=clean_environment | values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs("OTELCOL")
@pytest.mark.parametrize("name", ["agent.yaml", "dev.yaml"])
def test_a_run_arrives_through_a_real_collector(name, tmp_path, start, answers, eventually, clean_environment):
    assert COLLECTOR is not None
    server_port = reserve_port()
    environment = clean_environment | {"TENSORMETER_DIR": str(tmp_path / "none")}
    server = start(
        [sys.executable, "-m", "tensormeter", "serve", "--port", str(server_port), "--data", str(tmp_path / "data")],
        environment,
    )
    url = f"http://127.0.0.1:{server_port}"
    answers(server, f"{url}/api/v1/projects")
    text = (FOLDER / name).read_text()
    ports = {port: reserve_port() for port in ("4317", "4318", "13133")}
    for port, free in ports.items():
        text = text.replace(f":{port}", f":{free}")
    (tmp_path / name).write_text(text)
    collector = start(
        [COLLECTOR, "--config", str(tmp_path / name)],
        clean_environment
        | {
            "OTELCOL_STORAGE": str(tmp_path / "queue"),
            "TENSORMETER_GATEWAY": url,
            "TENSORMETER_ENDPOINT": url,
            "TENSORMETER_TOKEN": "none",
            "PROMETHEUS_REMOTE_WRITE": "http://127.0.0.1:1",
        },
    )
    answers(collector, f"http://127.0.0.1:{ports['13133']}/")
    run_python(
        "-c",
        TRAINER,
        environment=clean_environment
        | {"TENSORMETER_DIR": str(tmp_path / "runs"), "TENSORMETER_ENDPOINT": f"http://127.0.0.1:{ports['4318']}"},
        check=True,
    )
    answers(collector, f"{url}/api/v1/runs/r")

    def values():
        series = urllib3.request("GET", f"{url}/api/v1/runs/r/series?metric=loss").json()["series"]
        return [value for line in series for value in line["value"]]

    # The run is known by its log record, which may come before its points.
    eventually(lambda: len(values()) >= 100)
    assert values() == [1 / (step + 1) for step in range(100)]
