"""The run that measurements go to, the resource, flushing, forks, and installing the provider."""

import gzip
import inspect
import os
from importlib.metadata import version

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as PB2Resource
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

import tensormeter
from support.forks import call_in_child
from support.processes import run_python
from tensormeter import MeterProvider, UsageError
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.sync import sync_runs
from tensormeter.otlp.decode import decode_metrics


@pytest.fixture
def delivering(settings):
    """Settings of a run whose agent, on a thread, puts everything on disk."""
    return settings.replace(agent="thread", schedule_delay=0.05, finish_timeout=300)


def spooled(settings):
    """{run: {process: {metric: last value or count}}} of everything on disk."""
    by_process = {}
    for run in list_runs(settings.directory):
        spool = Spool(run.spool)
        for signal, body in spool._fetch_all("SELECT signal, body FROM request ORDER BY sequence"):
            if signal == "metrics":
                for batch in decode_metrics(gzip.decompress(body)):
                    process = by_process.setdefault(run.run["run_id"], {}).setdefault(
                        batch.resource["service.instance.id"], {}
                    )
                    for series in batch.series:
                        values = series.values if hasattr(series, "values") else series.counts
                        process[series.name] = values.tolist()[-1]
        spool.close()
    return by_process


def test_a_provider_measures_into_its_run(delivering):
    first, second = tensormeter.init(settings=delivering), tensormeter.init(settings=delivering)
    provider = MeterProvider(run=first)
    provider.get_meter("m").create_counter("a").add(1)
    second.finish()
    first.finish()
    values = spooled(delivering)
    assert [set(process) for process in values[first.id].values()] == [{"a"}]
    assert second.id not in values


def test_a_provider_without_a_run_follows_the_latest_one(delivering, warnings_logged):
    provider = MeterProvider()
    counter = provider.get_meter("m").create_counter("a")
    runs = []
    for _ in range(2):
        runs.append(tensormeter.init(settings=delivering))
        counter.add(1)
        counter.add(1)
        runs[-1].finish()
        counter.add(1)
    assert [list(spooled(delivering)[run.id].values()) for run in runs] == [[{"a": 2}], [{"a": 2}]]
    assert len([line for line in warnings_logged() if "after the run was finished" in line]) == 1


def test_a_provider_without_any_run_starts_one(delivering, monkeypatch):
    for name, value in {
        "TENSORMETER_DIR": str(delivering.directory),
        "TENSORMETER_BUFFER_DIR": str(delivering.buffer_directory),
        "TENSORMETER_MODE": "offline",
        "TENSORMETER_AGENT": "thread",
        "TENSORMETER_SCHEDULE_DELAY": "0.05",
        "TENSORMETER_PROJECT": "by-environment",
    }.items():
        monkeypatch.setenv(name, value)
    provider = MeterProvider()
    counter = provider.get_meter("m").create_counter("a")
    provider.get_meter("m").create_histogram("a")  # a conflict, at which settings are looked at
    assert tensormeter.run is None
    counter.add(1)
    assert provider._own_run.project == "by-environment"
    assert provider.force_flush(timeout_millis=300_000)
    assert list(spooled(delivering)[provider._own_run.id].values()) == [{"a": 1}]
    counter.add(1)
    assert provider.shutdown(timeout_millis=300_000)
    assert list(spooled(delivering)[provider._own_run.id].values()) == [{"a": 2}]
    assert provider._own_run._finished


def test_settings_that_cannot_be_used_are_reported_once(monkeypatch, warnings_logged):
    monkeypatch.setenv("TENSORMETER_MODE", "sometimes")
    provider = MeterProvider()
    counter = provider.get_meter("m").create_counter("a")
    for _ in range(3):
        counter.add(1)
    provider.get_meter("m").create_observable_gauge("g", [lambda options: []])
    provider.shutdown(timeout_millis=300_000)
    assert len([line for line in warnings_logged() if "sometimes" in line]) == 1


def test_a_disabled_run_measures_nothing(settings):
    run = tensormeter.init(settings=settings.replace(mode="disabled"))
    provider = MeterProvider(run=run)
    provider.get_meter("m").create_counter("a").add(1)
    assert provider.force_flush()
    assert provider.shutdown()
    run.finish()
    assert list_runs(settings.directory) == []


def test_a_run_that_is_no_run_is_an_error():
    with pytest.raises(UsageError, match=r"expected a tensormeter\.Run"):
        MeterProvider(run="run")  # type: ignore[arg-type]


def test_resource_attributes_are_merged_and_cannot_change_the_run(new_measured):
    resource = Resource.create({"team": "vision", "service.name": "other", "ranks": [0, 1], "host.name": "ours"})
    measured = new_measured(resource=resource)
    measured.run.log({"loss": 1.0})
    measured.meter.create_counter("a").add(1)
    measured.series()
    assert measured.resource["team"] == "vision"
    assert measured.resource["ranks"] == [0, 1]
    assert measured.resource["host.name"] == "ours"
    assert measured.resource["service.name"] == measured.run.project
    assert measured.resource["service.instance.id"] == measured.run._process.id
    assert measured.resource["telemetry.sdk.name"] == "tensormeter"


def test_a_flush_waits_for_the_agent_and_no_longer_than_asked(delivering, settings):
    run = tensormeter.init(settings=delivering)
    provider = MeterProvider(run=run)
    counter = provider.get_meter("m").create_counter("a")
    counter.add(1)
    assert provider.force_flush(timeout_millis=300_000)
    assert list(spooled(delivering)[run.id].values()) == [{"a": 1}]
    counter.add(1)
    assert provider.shutdown(timeout_millis=300_000)
    assert list(spooled(delivering)[run.id].values()) == [{"a": 2}]
    run.finish()
    run = tensormeter.init(settings=settings)  # without an agent
    provider = MeterProvider(run=run)
    provider.get_meter("m").create_counter("a").add(1)
    assert not provider.force_flush()
    run.finish()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("after_fork", ["record", "ignore"])
def test_forked_children_count_for_themselves(settings, after_fork):
    run = tensormeter.init(settings=settings.replace(after_fork=after_fork))
    provider = MeterProvider(run=run)
    meter = provider.get_meter("m")
    counter = meter.create_counter("a")
    histogram = meter.create_histogram("h")
    counter.add(1)
    counter.add(10)

    def child():
        counter.add(100)
        counter.add(1000)
        histogram.record(1.0, {"k": "v"})
        counter.add(10000)
        run.finish()

    call_in_child(child)
    counter.add(5)
    own = run._process.id
    run.finish()
    for _ in sync_runs(settings.directory, endpoint="http://127.0.0.1:1"):
        pass  # to disk; there is no server
    (processes,) = spooled(settings).values()
    assert processes.pop(own) == {"a": 16}
    assert list(processes.values()) == ([{"a": 11100, "h": 1}] if after_fork == "record" else [])


def test_readers_get_everything_as_well(new_measured):
    reader = InMemoryMetricReader()
    measured = new_measured(metric_readers=[reader], resource=Resource.create({"team": "vision"}))
    meter = measured.provider.get_meter("lib", "1", "schema", {"a": 1})
    meter.create_counter("counter", unit="1", description="d").add(2, {"k": "v"})
    meter.create_up_down_counter("up_down").add(-2)
    meter.create_gauge("gauge").set(3.5)
    meter.create_histogram("histogram", explicit_bucket_boundaries_advisory=[1]).record(0.5)
    meter.create_counter("µ", unit="µs")  # which the SDK refuses, and so does the name's rule
    data = reader.get_metrics_data()
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert resource.resource.attributes["team"] == "vision"
    assert (scope.scope.name, scope.scope.version, scope.schema_url) == ("lib", "1", "schema")
    points = {metric.name: metric.data.data_points[0] for metric in scope.metrics}
    assert {name: getattr(point, "value", None) for name, point in points.items()} == {
        "counter": 2, "up_down": -2, "gauge": 3.5, "histogram": None,
    }  # fmt: skip
    assert points["counter"].attributes == {"k": "v"}
    assert points["histogram"].bucket_counts == (1, 0)
    assert len(measured.series()) == 4
    assert measured.provider.force_flush() is False  # there is no agent, and the reader is flushed all the same


class Exported(MetricExporter):
    """Keeps what a periodic reader exports."""

    def __init__(self):
        super().__init__()
        self.values = []
        self.over = False

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        for scope in metrics_data.resource_metrics[0].scope_metrics:
            self.values += [(metric.name, metric.data.data_points[0].value) for metric in scope.metrics]
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        self.over = True


def test_a_periodic_reader_is_flushed_and_shut_down_with_the_provider(new_measured):
    exported = Exported()
    measured = new_measured(metric_readers=[PeriodicExportingMetricReader(exported, 3_600_000)])
    counter = measured.meter.create_counter("a")
    counter.add(1)
    measured.provider.force_flush(timeout_millis=60_000)
    assert exported.values == [("a", 1)]
    counter.add(2)
    measured.provider.shutdown(timeout_millis=60_000)
    assert exported.values == [("a", 1), ("a", 3)]  # once, by the reader's own last collection
    assert exported.over


def test_readers_get_the_resource_of_the_run(new_measured):
    reader = InMemoryMetricReader()
    measured = new_measured(metric_readers=[reader])
    measured.meter.create_counter("a").add(1)
    measured.series()
    (resource,) = reader.get_metrics_data().resource_metrics
    assert dict(resource.resource.attributes) == measured.run._process.resource
    assert resource.resource.attributes["service.name"] == measured.run.project
    assert measured.resource["service.instance.id"] == resource.resource.attributes["service.instance.id"]
    assert PB2Resource(attributes=[]) != encode_metrics(reader.get_metrics_data()).resource_metrics[0].resource


def test_readers_get_the_resource_that_the_program_sets(new_measured):
    reader = InMemoryMetricReader()
    resource = Resource.create({"team": "vision", "host.name": "ours"}, "https://example.org/schema")
    measured = new_measured(metric_readers=[reader], resource=resource)
    measured.meter.create_counter("a").add(1)
    resource_read = reader.get_metrics_data().resource_metrics[0].resource
    assert (resource_read.attributes["team"], resource_read.attributes["host.name"]) == ("vision", "ours")
    assert resource_read.attributes["service.name"] == measured.run.project  # no name was given
    assert resource_read.schema_url == "https://example.org/schema"
    named = InMemoryMetricReader()
    provider = MeterProvider([named], Resource.create({"service.name": "mine"}), run=measured.run)
    provider.get_meter("m").create_counter("a").add(1)
    assert named.get_metrics_data().resource_metrics[0].resource.attributes["service.name"] == "mine"
    provider.shutdown(timeout_millis=0)


def test_readers_may_be_asked_before_there_is_a_run(monkeypatch):
    monkeypatch.setenv("TENSORMETER_PROJECT", "to-come")
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider._forwarding._lost = 1
    (resource_metrics,) = reader.get_metrics_data().resource_metrics
    assert resource_metrics.resource.attributes["service.name"] == "to-come"
    provider.shutdown(timeout_millis=0)


def test_the_arguments_are_those_of_the_sdk(new_measured):
    """So the class may be swapped in a program that uses the SDK's."""
    ours, theirs = (list(inspect.signature(kind.__init__).parameters) for kind in (MeterProvider, SDKMeterProvider))
    assert ours[:6] == theirs[:6] == [
        "self", "metric_readers", "resource", "exemplar_filter", "shutdown_on_exit", "views",
    ]  # fmt: skip
    reader = InMemoryMetricReader()
    measured = new_measured(metric_readers=[reader], exemplar_filter=AlwaysOnExemplarFilter(), shutdown_on_exit=False)
    measured.meter.create_counter("a").add(5)
    (point,) = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert [exemplar.value for exemplar in point.exemplars] == [5]


def test_the_scope_of_what_is_logged_has_a_version(measured):
    measured.run.log({"loss": 1.0})
    series = measured.one("loss")
    assert (series.scope.name, series.scope.version) == ("tensormeter", version("tensormeter"))


def test_a_unit_that_the_sdk_refuses_is_kept_from_the_readers_only(new_measured, warnings_logged):
    measured = new_measured(metric_readers=[InMemoryMetricReader()])
    measured.meter.create_counter("a", unit="µs").add(1)
    assert measured.one("a").unit == "µs"
    assert any("cannot forward 'a' to metric readers" in line for line in warnings_logged())


INSTALLED = """
import sys
from opentelemetry import metrics
early = metrics.get_meter("early").create_counter("early")  # before anything is installed
if sys.argv[1] == "configure":
    import tensormeter
    provider = tensormeter.configure()
    assert metrics.get_meter_provider() is provider
metrics.get_meter("late").create_histogram("late").record(1.0)
early.add(1)
from tensormeter import MeterProvider
assert type(metrics.get_meter_provider()) is MeterProvider
assert "torch" not in sys.modules and "opentelemetry.sdk.metrics" not in sys.modules
"""


@pytest.mark.parametrize("how", ["configure", "environment"])
def test_it_can_be_installed_as_the_global_provider(tmp_path, settings, how):
    """A program that knows only OpenTelemetry's API, and ends without a word."""
    environment = {
        "PATH": os.environ["PATH"],
        "TENSORMETER_DIR": str(settings.directory),
        "TENSORMETER_SELF_METRICS_INTERVAL": "0",
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_CONSOLE": "off",
        "TENSORMETER_BUFFER_DIR": str(settings.buffer_directory),
        "TENSORMETER_MODE": "offline",
        "TENSORMETER_AGENT": "thread",
    } | ({"OTEL_PYTHON_METER_PROVIDER": "tensormeter"} if how == "environment" else {})
    run_python("-W", "error", "-c", INSTALLED, how, environment=environment, check=True)
    (processes,) = spooled(settings).values()
    assert list(processes.values()) == [{"early": 1, "late": 1}]
