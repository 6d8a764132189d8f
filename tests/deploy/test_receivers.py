"""Other people's receivers of OTLP, really run: Prometheus, VictoriaMetrics, VictoriaLogs, and a Collector that is killed.

Each takes what a run records once, with no settings but OpenTelemetry's own. The programs are named by environment variables.
"""

import json
import re
import signal
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import urllib3

from support.ports import reserve_port
from support.processes import run_python
from support.programs import needs, program
from support.waiting import wait_for

ROOT = Path(__file__).parents[2]

LOSSES = [step / 2 for step in range(200)]
TRAINER = """
import time, tensormeter
with tensormeter.init(project="p", id="r", name="first", config={"lr": 0.1}) as run:
    for step in range(200):
        run.log({"loss": step / 2}, step)
        if step % 50 == 0:
            run.log({"weights": tensormeter.Histogram([float(step), 1.0, 2.0])}, step)
        time.sleep(0.002)  # Prometheus keeps times in milliseconds
    run.alert("loss spike", "twice the mean", level="ERROR")
"""


def get(url, **parameters):
    return urllib3.request("GET", f"{url}?{urllib.parse.urlencode(parameters)}", timeout=30)


@pytest.fixture
def train(tmp_path, clean_environment):
    """Runs the trainer to its end. Returns what it says."""

    def train(**variables):
        environment = clean_environment | {
            "TENSORMETER_DIR": str(tmp_path / "runs"),
            "TENSORMETER_SAMPLE_INTERVAL": "0",
            "TENSORMETER_CONSOLE": "off",
            "TENSORMETER_EXPORTERS": "otlp",
            "TENSORMETER_FINISH_TIMEOUT": "120",
            "TENSORMETER_LINGER_TIMEOUT": "1",
            **variables,
        }
        done = run_python("-c", TRAINER, environment=environment, check=True)
        return done.stderr

    return train


@pytest.fixture
def prometheus(tmp_path, start, answers, clean_environment):
    port = reserve_port()
    (tmp_path / "prometheus.yml").write_text("global: {scrape_interval: 1h}\n")
    command = [
        program("PROMETHEUS"),
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-otlp-receiver",
    ]
    answers(start(command, clean_environment), f"http://127.0.0.1:{port}/-/ready")
    return f"http://127.0.0.1:{port}"


def query(url, text):
    return get(f"{url}/api/v1/query", query=text).json()["data"]["result"]


def losses(url):
    return [[float(value) for _, value in series["values"]] for series in query(url, "loss[1h]")]


@needs("PROMETHEUS")
def test_prometheus_gets_every_value_and_distributions_as_histograms(prometheus, train):
    errors = train(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"{prometheus}/api/v1/otlp",
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="cumulative",
        OTEL_LOGS_EXPORTER="none",
    )
    assert losses(prometheus) == [LOSSES]
    (weights,) = query(prometheus, "weights[1h]")
    assert [int(float(histogram["count"])) for _, histogram in weights["histograms"]] == [3, 6, 9, 12]
    assert "not been fully delivered" not in errors
    assert "quarantined" not in errors


@needs("PROMETHEUS")
def test_prometheus_refuses_distributions_of_delta_temporality_alone(prometheus, train):
    errors = train(OTEL_EXPORTER_OTLP_ENDPOINT=f"{prometheus}/api/v1/otlp", OTEL_LOGS_EXPORTER="none")
    assert losses(prometheus) == [LOSSES]
    (line,) = [line for line in errors.splitlines() if "quarantined" in line]
    assert "weights (delta exponential histogram)" in line
    assert "400" in line


@needs("PROMETHEUS")
def test_prometheus_takes_no_log_records_and_the_run_says_so(prometheus, train):
    errors = train(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"{prometheus}/api/v1/otlp",
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="cumulative",
    )
    assert losses(prometheus) == [LOSSES]
    (line,) = [line for line in errors.splitlines() if "not been fully delivered" in line]
    assert "otlp (logs): " in line
    assert "/v1/logs" in line
    assert "OTEL_LOGS_EXPORTER=none" in line


@needs("VICTORIA_METRICS", "VICTORIA_LOGS")
def test_victoria_gets_metrics_and_log_records_each_at_its_own_address(
    tmp_path, train, start, answers, clean_environment
):
    urls = {}
    for name in ("METRICS", "LOGS"):
        port = reserve_port()
        command = [
            program(f"VICTORIA_{name}"),
            f"-httpListenAddr=127.0.0.1:{port}",
            f"-storageDataPath={tmp_path}/{name}",
        ]
        process = start(command, clean_environment)
        urls[name] = f"http://127.0.0.1:{port}"
        answers(process, f"{urls[name]}/health")
    errors = train(
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{urls['METRICS']}/opentelemetry/v1/metrics",
        OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"{urls['LOGS']}/insert/opentelemetry/v1/logs",
    )
    assert "not been fully delivered" not in errors
    assert "quarantined" not in errors

    def stored():
        get(f"{urls['METRICS']}/internal/force_flush")
        return losses(urls["METRICS"])

    assert wait_for(
        lambda: (stored_losses := stored()) and len(stored_losses[0]) == len(LOSSES) and stored_losses, "values arrive"
    ) == [LOSSES]

    def records():
        return [json.loads(line) for line in get(f"{urls['LOGS']}/select/logsql/query", query="*").data.splitlines()]

    names = ["tensormeter.alert", "tensormeter.run.end", "tensormeter.run.start"]
    wait_for(lambda: len(records()) >= len(names), "records arrive")
    assert sorted(record["event_name"] for record in records()) == names


LONG_TRAINER = """
import select, sys, tensormeter
run = tensormeter.init(project="p", id=sys.argv[1])
step = 0
while not select.select([sys.stdin], [], [], 0.002)[0]:
    run.log({"a": step * 2, "b": step * 2 + 1}, step)
    step += 1
run.finish()
print(step)
"""


@needs("OTELCOL")
def test_a_collector_that_is_killed_often_loses_and_doubles_nothing(tmp_path, start, answers, clean_environment):
    """Over 20 s: a Collector takes a second or two from its start to its first request, ten times."""
    server_port = reserve_port()
    server = start(
        [sys.executable, "-m", "tensormeter", "serve", "--port", str(server_port), "--data", str(tmp_path / "data")],
        clean_environment,
    )
    url = f"http://127.0.0.1:{server_port}"
    answers(server, f"{url}/healthz")
    text = (ROOT / "collector-config" / "agent.yaml").read_text()
    ports = {port: reserve_port() for port in ("4317", "4318", "13133")}
    for port, free in ports.items():
        text = re.sub(f":{port}\\b", f":{free}", text)
    (tmp_path / "agent.yaml").write_text(text)
    environment = clean_environment | {
        "OTELCOL_STORAGE": str(tmp_path / "queue"),
        "TENSORMETER_GATEWAY": url,
        "TENSORMETER_TOKEN": "none",
    }
    collector = start([program("OTELCOL"), "--config", str(tmp_path / "agent.yaml")], environment)
    answers(collector, f"http://127.0.0.1:{ports['13133']}/")
    trainers = {}
    for route, variables in {
        "http": {"TENSORMETER_ENDPOINT": f"http://127.0.0.1:{ports['4318']}"},
        "grpc": {
            "TENSORMETER_EXPORTERS": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ports['4317']}",
        },
    }.items():
        trainers[route] = subprocess.Popen(
            [sys.executable, "-c", LONG_TRAINER, route],
            env=clean_environment
            | {
                "TENSORMETER_DIR": str(tmp_path / "runs"),
                "TENSORMETER_SAMPLE_INTERVAL": "0",
                "TENSORMETER_CONSOLE": "off",
                **variables,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def values(route, metric):
        answer = get(f"{url}/api/v1/runs/{route}/series", metric=metric, project="p", max_points=0)
        lines = answer.json()["series"] if answer.status == 200 else []
        return lines[0]["value"] if lines else []

    for _ in range(8):
        seen = {route: len(values(route, "a")) for route in trainers}
        collector.send_signal(signal.SIGKILL)
        collector.wait(60)
        collector = start([program("OTELCOL"), "--config", str(tmp_path / "agent.yaml")], environment)
        answers(collector, f"http://127.0.0.1:{ports['13133']}/")
        wait_for(
            lambda seen=seen: any(len(values(route, "a")) > seen[route] for route in trainers), "something arrives"
        )
    for route, trainer in trainers.items():
        steps = int(trainer.communicate("end\n", timeout=300)[0])
        for metric, odd in (("a", 0), ("b", 1)):
            expected = [step * 2 + odd for step in range(steps)]
            wait_for(lambda key=(route, metric), steps=steps: len(values(*key)) >= steps, "every value arrives")
            assert values(route, metric) == expected
