"""The scrape endpoint, scraped by Prometheus itself where Debian's `prometheus` is installed."""

import json
import shutil
import subprocess

import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from tensormeter.exporter import Accepted
from tensormeter_exporters.prometheus import PrometheusExporter


@pytest.fixture
def exporter(config):
    exporter = PrometheusExporter(config("prometheus", port="0"))
    yield exporter
    exporter.shutdown()


def scrape(exporter):
    answer = urllib3.request("GET", f"http://127.0.0.1:{exporter.port}/metrics", retries=False)
    assert answer.status == 200
    return {
        (sample.name, sample.labels.get("process"), sample.labels.get("hw_id")): sample.value
        for family in text_string_to_metric_families(answer.data.decode())
        for sample in family.samples
    }


def test_last_values(make, exporter):
    late = make.rows({5: {"train/loss": 0.5}}, start=make.T0 + 10**12)
    power = make.gauge("hw.power", [make.T0 + 1], [250.0], **{"hw.id": "GPU-0"})
    series = [*make.rows({1: {"train/loss": 4.0}}), power, make.counter("tokens", [make.T0], [3.0])]
    assert exporter.export(make.logged(2, late)) == Accepted()
    for _ in range(2):  # older, and again: nothing goes back
        assert exporter.export(make.logged(1, [*series, make.histogram("grad", make.T0)])) == Accepted()
    assert exporter.export(make.logs(3, make.start({}))) == Accepted()
    found = scrape(exporter)
    process = make.resource()["service.instance.id"]
    assert found["train_loss", process, None] == 0.5
    assert found["tensormeter_step", process, None] == 5
    assert found["hw_power", process, "GPU-0"] == 250
    assert found["tokens_total", process, None] == 3
    assert found["grad_count", process, None] == 5
    assert found["tensormeter_prometheus_refused_total", None, None] == 0


def test_a_step_is_no_label(make, exporter):
    exporter.export(make.logged(1, make.rows({1: {"a": 1.0}, 2: {"a": 2.0}})))
    text = urllib3.request("GET", f"http://127.0.0.1:{exporter.port}/metrics", retries=False).data.decode()
    labels = {
        label for family in text_string_to_metric_families(text) for sample in family.samples for label in sample.labels
    }
    assert labels == {"project", "run_id", "process"}


def test_memory_is_bounded_and_what_is_refused_is_counted(make, config):
    exporter = PrometheusExporter(config("prometheus", port="0", max_series="10"))
    try:
        outcome = exporter.export(make.logged(1, make.rows({1: {f"m{index}": 1.0 for index in range(30)}})))
        assert outcome.rejected == 21  # the steps are the tenth
        found = scrape(exporter)
        assert sum(name.startswith("m") for name, _, _ in found) == 9
        assert found["tensormeter_prometheus_refused_total", None, None] >= 21
    finally:
        exporter.shutdown()


def test_each_agent_of_a_machine_takes_a_port_of_its_own(config, free_port):
    first = str(free_port())
    exporters = [PrometheusExporter(config("prometheus", port=first)) for _ in range(2)]
    try:
        assert exporters[0].port != exporters[1].port
    finally:
        for exporter in exporters:
            exporter.shutdown()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package `prometheus` is not installed")
def test_prometheus_scrapes_it(make, exporter, tmp_path, free_port, wait_for):
    exporter.export(make.logged(1, make.rows({41: {"train/loss": 4.0}, 42: {"train/loss": 0.125}})))
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        f"scrape_configs: [{{job_name: t, scrape_interval: 200ms, scrape_timeout: 200ms, "
        f"static_configs: [{{targets: ['127.0.0.1:{exporter.port}']}}]}}]\n",
    )
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=log,
        stderr=log,
    )  # fmt: skip

    def query(text):
        try:
            answer = urllib3.request(
                "GET", f"http://127.0.0.1:{port}/api/v1/query", fields={"query": text}, retries=False
            )
        except urllib3.exceptions.HTTPError:
            assert process.poll() is None, (tmp_path / "log").read_text()
            return []
        return json.loads(answer.data)["data"]["result"] if answer.status == 200 else []

    try:
        wait_for(lambda: query("train_loss"), "Prometheus has scraped")
        (found,) = query('train_loss{run_id="run1",project="demo"}')
        assert found["value"][1] == "0.125"
        (step,) = query("tensormeter_step")
        assert step["value"][1] == "42"
    finally:
        process.terminate()
        process.wait(300)
        log.close()
