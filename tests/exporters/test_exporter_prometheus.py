"""The scrape endpoint, scraped by Prometheus itself where there is one."""

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
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from support.ports import reserve_port
from support.programs import program
from tensormeter.exporter import Accepted
from tensormeter.otlp.batch import Buckets, ExponentialHistogram, Scope, Temporality
from tensormeter_exporters.prometheus.classic_buckets import ClassicBuckets
from tensormeter_exporters.prometheus.exporter import PrometheusExporter

PROMETHEUS = program("PROMETHEUS") or shutil.which("prometheus")


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


def test_the_newest_values_are_shown(make, exporter):
    late = make.rows({5: {"train/loss": 0.5}}, start=make.T0 + 10**12)
    power = make.gauge("hw.power", [make.T0 + 1], [250.0], **{"hw.id": "GPU-0"})
    series = [*make.rows({1: {"train/loss": 4.0}}), power, make.counter("tokens", [make.T0], [3.0])]
    assert exporter.export(make.logged(2, late)) == Accepted()
    for _ in range(2):  # older, and again: nothing goes back
        assert exporter.export(make.logged(1, [*series, make.histogram("grad", make.T0)])) == Accepted()
    assert exporter.export(make.logs(3, make.start({}))) == Accepted()
    samples = scrape(exporter)
    process = make.resource()["service.instance.id"]
    assert samples["train_loss", process, None] == 0.5
    assert samples["tensormeter_step", process, None] == 5
    assert samples["hw_power", process, "GPU-0"] == 250
    assert samples["tokens_total", process, None] == 3
    assert samples["grad_gcount", process, None] == 5
    assert samples["grad_max", process, None] == 30
    assert samples["tensormeter_prometheus_refused_total", None, None] == 0


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
        indices = [math.ceil(math.log2(value) * 2**scale) - 1 for value in magnitudes]
        first = min(indices, default=0)
        counts = [indices.count(index) for index in range(first, max(indices, default=first - 1) + 1)]
        return Buckets(np.array([first]), [np.array(counts, np.uint64)])

    times = np.array([1], np.uint64)
    return ExponentialHistogram(
        "grad", times, times, np.array([len(values)], np.uint64), np.array([sum(values)]), np.array([min(values)]),
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
        classic = grid.of(series, 0)
        bounds = [bound for bound, _ in classic]
        assert len(classic) <= most
        assert bounds == sorted(set(bounds))
        assert classic[-1] == (math.inf, len(values))
        for bound, count in classic:
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


def families(exporter):
    """Each family by name: its help, and values by labels other than the run's; in both formats, which check for names that clash."""
    url = f"http://127.0.0.1:{exporter.port}/metrics"
    openmetrics = urllib3.request(
        "GET", url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}, retries=False
    )
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
    list(openmetrics_families(openmetrics.data.decode()))  # raises ValueError
    text = urllib3.request("GET", url, retries=False).data.decode()
    return {
        family.name: (
            family.documentation,
            {
                (
                    sample.name,
                    tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("project", "run_id"))),
                ): sample.value
                for sample in family.samples
            },
        )
        for family in text_string_to_metric_families(text)
    }


def value_of(exposed_families, documentation):
    """The only value of the family whose help begins so."""
    ((_, values),) = [family for family in exposed_families.values() if family[0] == documentation]
    (value,) = values.values()
    return value


NAMES = [
    "train/loss",
    "train.loss",
    "train loss",
    "train_loss",
    "Train/loss",
    "1digit",
    "_1digit",
    "損失",
    "精度",
    "",
    "a:b",
    "a/b",
]


@pytest.mark.parametrize("order", [1, -1])
def test_metrics_whose_names_become_the_same_are_told_apart(make, exporter, caplog, order):
    values = {name: 700.0 + number for number, name in enumerate(NAMES)}
    rows = {1: {name: values[name] for name in NAMES[::order]}}
    for number in range(2):  # the second time changes nothing
        assert exporter.export(make.logged(number, make.rows(rows))) == Accepted()
        exposed = families(exporter)
    scraped = sorted(value for _, family in exposed.values() for value in family.values())
    assert [value for value in scraped if value >= 700] == sorted(values.values())
    for name in filter(None, NAMES):
        assert value_of(exposed, name) == values[name]
    for name in ("train_loss", "_1digit"):  # names without replaced characters go first
        assert list(exposed[name][1].values()) == [values[name]]
    assert list(exposed["a_b"][1].values()) == [values["a/b"]]
    warnings = [record.getMessage() for record in caplog.records]
    of_train_loss = "prometheus: metrics 'train_loss' and 'train.loss' would both become 'train_loss'; the second one is exported as 'train_loss_"
    assert sum(text.startswith(of_train_loss) for text in warnings) == 1
    assert len(warnings) == 5  # three of `train_loss`, `1digit`, `a:b`
    assert scrape(exporter)["tensormeter_prometheus_refused_total", None, None] == 0


def test_the_suffix_of_a_name_depends_on_the_name_alone(make, config):
    exposed = []
    for first, second in (("x/y", "x.y"), ("x y", "x.y"), ("x_y", "x.y")):
        exporter = PrometheusExporter(config("prometheus", port="0"))
        try:
            exporter.export(make.logged(1, make.rows({1: {first: 1.0}})))
            exporter.export(make.logged(2, make.rows({2: {second: 2.0}})))
            exposed.append({name for name, (text, _) in families(exporter).items() if text == "x.y"})
        finally:
            exporter.shutdown()
    assert exposed[0] == exposed[1] == exposed[2]
    assert len(exposed[0]) == 1


def test_logged_metrics_and_statistics_of_distributions_are_told_apart(make, exporter):
    logged = {
        "grad/mean": 703.0,
        "grad.max": 704.0,
        "grad/gcount": 705.0,
        "grad_bucket": 706.0,
        "grad/gsum": 707.0,
        "grad/sum": 708.0,
    }
    assert exporter.export(make.logged(1, [make.histogram("grad", make.T0), *make.rows({1: logged})])) == Accepted()
    exposed = families(exporter)
    for name, value in logged.items():
        assert value_of(exposed, name) == value
    assert list(exposed["grad_mean"][1].values()) == [703.0]
    assert [text for text, values in exposed.values() if 6.5 in values.values()] == ["mean of grad"]
    assert buckets(exporter, "grad") == {0: 1, 1: 2, 2: 4, math.inf: 5}


def test_kinds_of_one_name_are_told_apart(make, exporter):
    series = [
        make.counter("tokens", [make.T0], [3.0]),
        make.gauge("tokens", [make.T0], [4.0]),
        make.gauge("tokens/total", [make.T0], [5.0]),
    ]
    cumulative = dataclasses.replace(exponential([1.5] * 7, 3), name="tokens")
    for number in range(2):
        assert (
            exporter.export(make.logged(number, [*series, cumulative, make.histogram("tokens", make.T0)])) == Accepted()
        )
    exposed = families(exporter)
    scraped = sorted(
        value
        for text, values in exposed.values()
        if text.startswith("tokens")
        for value in values.values()
        if value in (3, 4, 5, 7)
    )
    assert {3, 4, 5, 7} <= set(scraped)
    names = {name: set(values.values()) for name, (_, values) in exposed.items() if name in ("tokens", "tokens_total")}
    assert len(names) == 1


def test_own_names_are_not_overwritten(make, exporter):
    logged = {"tensormeter_step": 50.0, "tensormeter/step": 51.0, "tensormeter_prometheus_refused_total": 52.0}
    assert exporter.export(make.logged(1, make.rows({7: logged}))) == Accepted()
    samples = scrape(exporter)
    process = make.resource()["service.instance.id"]
    assert samples["tensormeter_step", process, None] == 7
    assert samples["tensormeter_prometheus_refused_total", None, None] == 0
    assert {50.0, 51.0, 52.0} <= set(samples.values())


def test_attributes_whose_names_become_the_same_are_told_apart(make, exporter, caplog):
    sets = [
        {"a.b": "1"},
        {"a_b": "1"},
        {"a.b": "1", "a_b": "2"},
        {"le": "1"},
        {"process": "mine"},
        {"process": "other"},
        {"__name__": "x"},
        {"": "y"},
        {"1": "z"},
    ]
    series = [make.gauge("m", [make.T0], [float(number)], **attributes) for number, attributes in enumerate(sets)]
    for number in range(2):
        assert exporter.export(make.logged(number, series)) == Accepted()
    _, values = families(exporter)["m"]
    assert sorted(values.values()) == [float(number) for number in range(len(sets))]
    labels = {value: dict(labels) for (_, labels), value in values.items()}
    assert {name: text for name, text in labels[3].items() if name != "process"} == {"attribute_le": "1"}
    assert labels[4] == {"attribute_process": "mine", "process": make.resource()["service.instance.id"]}
    assert all(text in labels[2].values() for text in "12")
    assert not caplog.records


def test_scopes_are_told_apart(make, exporter):
    series = [
        dataclasses.replace(make.gauge("requests", [make.T0], [value]), scope=Scope(name, version))
        for name, version, value in (("liba", "1", 1.0), ("libb", "1", 2.0), ("libb", "2", 3.0))
    ]
    for number in range(2):
        assert exporter.export(make.logged(number, series)) == Accepted()
    _, values = families(exporter)["requests"]
    assert sorted(values.values()) == [1.0, 2.0, 3.0]
    assert {dict(labels).get("otel_scope_version") for _, labels in values} == {None, "1", "2"}


def test_every_field_of_a_scope_tells_series_apart(make, exporter):
    scopes = [
        Scope("lib", "1", attributes={"shard": "a"}),
        Scope("lib", "1", attributes={"shard": "b", "name": "x"}),
        Scope("lib", "1", attributes={"shard": "c"}),
        Scope("lib", "1", "https://example.org/schemas/2"),
    ]
    series = [
        dataclasses.replace(make.gauge("requests", [make.T0], [float(number)]), scope=scope)
        for number, scope in enumerate(scopes)
    ]
    for number in range(2):
        assert exporter.export(make.logged(number, series)) == Accepted()
    _, values = families(exporter)["requests"]
    assert sorted(values.values()) == [0.0, 1.0, 2.0, 3.0]
    labels = {value: dict(labels) for (_, labels), value in values.items()}
    assert labels[2.0]["otel_scope_shard"] == "c"
    assert labels[3.0]["otel_scope_schema_url"] == "https://example.org/schemas/2"


def test_units_and_forms_of_one_name_are_told_apart(make, exporter, caplog):
    def other(value, monotonic, temporality):
        counter = make.counter("m", [make.T0], [value])
        return dataclasses.replace(counter, monotonic=monotonic, temporality=temporality)

    series = [
        make.gauge("m", [make.T0], [1.0]),
        dataclasses.replace(make.gauge("m", [make.T0], [2.0]), unit="s"),
        dataclasses.replace(make.gauge("m", [make.T0], [3.0]), unit="By"),
        other(4.0, False, Temporality.CUMULATIVE),
        other(5.0, True, Temporality.DELTA),
        other(6.0, True, Temporality.CUMULATIVE),
    ]
    for number in range(2):
        assert exporter.export(make.logged(number, series)) == Accepted()
    exposed = families(exporter)
    values = sorted(value for text, family in exposed.values() if text == "m" for value in family.values())
    assert values == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert any("metrics 'm' and 'm (By)' would both become 'm'" in record.getMessage() for record in caplog.records)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package prometheus is not installed")
def test_strict_parsers_take_counts_next_to_a_distribution(make, exporter):
    """A gauge histogram is a histogram to them, so that no other metric may have its `_count` and `_sum`."""
    rows = make.rows({1: {"grad_count": 1.0, "grad/sum": 2.0}})
    assert exporter.export(make.logged(1, [make.histogram("grad", make.T0), *rows])) == Accepted()
    answer = urllib3.request("GET", f"http://127.0.0.1:{exporter.port}/metrics", retries=False)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=answer.data, check=False, capture_output=True, timeout=60
    )
    assert b"error" not in checked.stderr, checked.stderr
    assert {1.0, 2.0} <= set(scrape(exporter).values())


def test_series_that_cannot_be_told_apart_are_refused_and_counted(make, exporter, caplog):
    series = [
        make.gauge("m", [make.T0], [1.0], x="1"),
        make.gauge("m", [make.T0], [2.0], x=1),
        make.gauge("m", [make.T0], [3.0], x="1", empty=""),
    ]
    outcome = exporter.export(make.logged(1, series))
    assert outcome == Accepted(2, "too many series (see the option max_series), or labels not unique")
    assert list(families(exporter)["m"][1].values()) == [1.0]
    assert scrape(exporter)["tensormeter_prometheus_refused_total", None, None] == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("prometheus: rejected series of 'm' with the same labels as another series")


def test_memory_is_bounded_and_refused_series_are_counted(make, config):
    exporter = PrometheusExporter(config("prometheus", port="0", max_series="10"))
    try:
        outcome = exporter.export(make.logged(1, make.rows({1: {f"m{index}": 1.0 for index in range(30)}})))
        assert outcome.rejected == 21  # the steps are the tenth
        samples = scrape(exporter)
        assert sum(name.startswith("m") for name, _, _ in samples) == 9
        assert samples["tensormeter_prometheus_refused_total", None, None] >= 21
    finally:
        exporter.shutdown()


def test_each_agent_of_a_machine_takes_a_port_of_its_own(config):
    first = str(reserve_port())
    exporters = [PrometheusExporter(config("prometheus", port=first)) for _ in range(2)]
    try:
        assert exporters[0].port != exporters[1].port
    finally:
        for exporter in exporters:
            exporter.shutdown()


@pytest.mark.skipif(PROMETHEUS is None, reason="PROMETHEUS names no program, and Debian's package is not installed")
def test_prometheus_scrapes_every_kind_of_metric(make, exporter, tmp_path, wait_for):
    rows = make.rows({41: {"train/loss": 4.0}, 42: {"train/loss": 0.125}})
    latency = dataclasses.replace(exponential([1.5] * 90 + [100.0] * 10, 3), name="latency")
    exporter.export(make.logged(1, [*rows, make.histogram("grad", make.T0), latency]))
    port = reserve_port()
    (tmp_path / "prometheus.yml").write_text(
        f"scrape_configs: [{{job_name: t, scrape_interval: 1s, scrape_timeout: 1s, "
        f"static_configs: [{{targets: ['127.0.0.1:{exporter.port}']}}]}}]\n"
    )
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [PROMETHEUS, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
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

    def query_value(text):
        answers = []
        wait_for(lambda: answers.extend(query(text)) or answers, text)  # a scrape that came too late leaves a gap
        (result,) = answers
        return result["value"][1]

    try:
        assert query_value('train_loss{run_id="run1",project="demo"}') == "0.125"
        assert query_value("tensormeter_step") == "42"
        # -1, 0.5, 1.5, 1.5, 30 in buckets up to 0, 1, 2: half of them are below 1.25 if they lie evenly in theirs
        assert float(query_value("histogram_quantile(0.5, grad_bucket)")) == 1.25
        assert query_value("grad_gcount") == "5"
        assert 2**6.5 < float(query_value("histogram_quantile(0.99, latency_bucket)")) <= 2**6.75
        assert query_value("latency_count") == "100"
        assert query_value("latency_sum") == "1135"
    finally:
        process.terminate()
        process.wait(300)
        log.close()
