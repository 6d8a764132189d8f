"""The scrape endpoint, scraped by Prometheus itself where Debian's `prometheus` is installed."""

import dataclasses
import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tensormeter.exporter import Accepted
from tensormeter.otlp.batch import Buckets, ExponentialHistogram, Temporality
from tensormeter_exporters.classic_buckets import ClassicBuckets
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
    assert found["grad_gcount", process, None] == 5
    assert found["grad_max", process, None] == 30
    assert found["tensormeter_prometheus_refused_total", None, None] == 0


def buckets(exporter, name):
    answer = urllib3.request("GET", f"http://127.0.0.1:{exporter.port}/metrics", retries=False)
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(answer.data.decode())
        for sample in family.samples
        if sample.name == f"{name}_bucket"
    }


def test_a_distribution_has_its_buckets(make, exporter):
    series = [make.histogram("grad", make.T0), make.exponential_histogram("weights", make.T0)]
    for _ in range(2):  # the second time changes nothing
        assert exporter.export(make.logged(1, series)) == Accepted()
        assert buckets(exporter, "grad") == {0: 1, 1: 2, 2: 4, math.inf: 5}
        # Base 2: one value in [-4, -2), two zeros, three in (1, 2], four in (2, 4].
        assert buckets(exporter, "weights") == {-2: 1, 0: 3, 2: 6, 4: 10, math.inf: 10}


def exponential(values, scale):
    """An exponential histogram of positive and negative values, as OpenTelemetry maps them."""

    def side(magnitudes):
        found = [math.ceil(math.log2(value) * 2**scale) - 1 for value in magnitudes]
        first = min(found, default=0)
        counts = [found.count(index) for index in range(first, max(found, default=first - 1) + 1)]
        return Buckets(np.array([first]), [np.array(counts, np.uint64)])

    one = np.array([1], np.uint64)
    return ExponentialHistogram(
        "grad", one, one, np.array([len(values)], np.uint64), np.array([sum(values)]), np.array([min(values)]),
        np.array([max(values)]), np.array([scale]), np.array([values.count(0)], np.uint64), np.array([0.0]),
        side([value for value in values if value > 0]), side([-value for value in values if value < 0]),
        temporality=Temporality.CUMULATIVE,
    )  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20), st.integers(-3, 8)), min_size=1),
    st.integers(6, 40),
)
def test_buckets_are_few_and_exact_and_their_bounds_stay(points, most):
    grid = ClassicBuckets(most)
    before = None
    for drawn, scale in points:
        values = [0.0 if abs(value) < 1e-18 else value for value in drawn]
        series = exponential(values, scale)
        found = grid.of(series, 0)
        bounds = [bound for bound, _ in found]
        assert len(found) <= most
        assert bounds == sorted(set(bounds))
        assert found[-1] == (math.inf, len(values))
        for bound, count in found:
            # A value on a bound, as near as logarithms can tell, may stand on either side of it.
            clear = [value for value in values if not math.isclose(value, bound, rel_tol=1e-9)]
            least = sum(value < bound for value in clear)
            assert least <= count <= least + len(values) - len(clear)
        if before is not None and grid._scale == before[0]:
            assert set(before[1]) <= set(bounds)  # while the scale stays, so does every bound
        before = grid._scale, bounds


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
    rows = make.rows({41: {"train/loss": 4.0}, 42: {"train/loss": 0.125}})
    latency = dataclasses.replace(exponential([1.5] * 90 + [100.0] * 10, 3), name="latency")
    exporter.export(make.logged(1, [*rows, make.histogram("grad", make.T0), latency]))
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        f"scrape_configs: [{{job_name: t, scrape_interval: 1s, scrape_timeout: 1s, "
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

    def one(text):
        found = []
        wait_for(lambda: found.extend(query(text)) or found, text)  # a scrape that came too late leaves a gap
        (result,) = found
        return result["value"][1]

    try:
        assert one('train_loss{run_id="run1",project="demo"}') == "0.125"
        assert one("tensormeter_step") == "42"
        # -1, 0.5, 1.5, 1.5, 30 in buckets up to 0, 1, 2: half of them are below 1.25 if they lie evenly in theirs
        assert float(one("histogram_quantile(0.5, grad_bucket)")) == 1.25
        assert one("grad_gcount") == "5"
        assert 2**6.5 < float(one("histogram_quantile(0.99, latency_bucket)")) <= 2**6.75
        assert one("latency_count") == "100"
        assert one("latency_sum") == "1135"
    finally:
        process.terminate()
        process.wait(300)
        log.close()
