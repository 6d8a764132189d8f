"""Both ways into plain OpenTelemetry: its exporters as destinations of ours, and ours as one of its exporters."""

import gzip
import math
import socket
import sys
from dataclasses import replace
from importlib.metadata import entry_points

import numpy as np
import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics as sdk_encode
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult

from support.ports import reserve_port
from support.processes import run_python
from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, Retry, load_exporter
from tensormeter.otlp.batch import Batch
from tensormeter.otlp.decode import decode_metrics
from tensormeter_exporters.otel import OTelExporter, metrics_data

RECORDER = """
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
class Recorder(MetricExporter):
    seen = []
    result = MetricExportResult.SUCCESS
    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        self.seen.append(metrics_data)
        return self.result
    def force_flush(self, timeout_millis=10_000):
        return True
    def shutdown(self, timeout_millis=30_000, **kwargs):
        self.seen.append("shut down")
"""


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    """A third-party package with a metric exporter, as pip installs it."""
    (tmp_path / "somebodys.py").write_text(RECORDER)
    about = tmp_path / "somebodys-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[opentelemetry_metrics_exporter]\nsomebodys = somebodys:Recorder\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import somebodys

    yield somebodys.Recorder
    sys.modules.pop("somebodys", None)


def test_any_metric_exporter_is_a_destination(make, config, recorder):
    exporter = load_exporter("otel:somebodys")(config("otel:somebodys"))
    request = make.logged(1, [*make.rows({5: {"loss": 1.0}, 4: {"loss": 2}}), make.histogram("h", make.T0)])
    assert exporter.export(request) == Accepted()
    assert exporter.export(make.logs(2, make.start({}))) == Accepted()
    recorder.result = MetricExportResult.FAILURE
    assert isinstance(exporter.export(request), Retry)
    exporter.shutdown()
    first, _, end = recorder.seen
    assert end == "shut down"
    (resource,) = first.resource_metrics
    assert resource.resource.attributes["service.name"] == "demo"
    names = [metric.name for metric in resource.scope_metrics[0].metrics]
    assert names == ["tensormeter.step", "loss", "h"] or sorted(names) == ["h", "loss", "loss", "tensormeter.step"]


def test_the_sdks_own_encoder_makes_the_same_of_it(make):
    """Every kind, by way of the SDK's objects, decodes to what it was, but for the sum of negative values."""
    series = [
        make.gauge("g", [make.T0, make.T0 + 1], [1.5, -0.5], kind="a"),
        make.counter("c", [make.T0], [3.0]),
        make.histogram("h", make.T0),
        make.exponential_histogram("e", make.T0),
    ]
    request = make.metrics(1, Batch(make.resource(), series))
    ours = gzip.decompress(request.body)
    data, left_out = metrics_data(decode_metrics(ours))
    assert left_out == 0
    theirs = ExportMetricsServiceRequest.FromString(sdk_encode(data).SerializeToString())
    expected = ExportMetricsServiceRequest.FromString(ours)
    points = [metric for scope in theirs.resource_metrics[0].scope_metrics for metric in scope.metrics]
    wanted = [metric for scope in expected.resource_metrics[0].scope_metrics for metric in scope.metrics]
    assert [metric.name for metric in points] == ["g", "c", "h", "e"]
    for point, original in zip(points, wanted, strict=True):
        kind = point.WhichOneof("data")
        assert kind == original.WhichOneof("data")
        for sdk_point, other in zip(getattr(point, kind).data_points, getattr(original, kind).data_points, strict=True):
            if kind in ("histogram", "exponential_histogram"):
                assert other.min < 0
                assert not sdk_point.HasField("sum")  # which its receiver would take for a counter
                other.ClearField("sum")
            for field in other.DESCRIPTOR.fields:
                if field.name not in ("exemplars", "flags", "zero_threshold"):  # the SDK's encoder has none of them
                    assert getattr(sdk_point, field.name) == getattr(other, field.name), (point.name, field.name)


@pytest.mark.parametrize(("low", "total", "sent"), [(0.5, 4.0, 4.0), (-0.5, 4.0, None), (0.5, math.nan, None)])
def test_a_histogram_without_a_sum_gets_none(make, config, recorder, low, total, sent):
    """OTLP's exporters leave it out; others, which may calculate with it, get NaN."""

    def total_of(data):
        (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
        return metric.data.data_points[0].sum

    series = replace(make.histogram("h", make.T0), minima=np.array([low]), sums=np.array([total]))
    request = make.metrics(1, Batch(make.resource(), [series]))
    assert total_of(metrics_data(decode_metrics(gzip.decompress(request.body)))[0]) == sent
    exporter = load_exporter("otel:somebodys")(config("otel:somebodys"))
    assert exporter.export(request) == Accepted()
    assert total_of(recorder.seen[-1]) == sent or (sent is None and math.isnan(total_of(recorder.seen[-1])))


def test_unknown_exporter_names_are_reported(config):
    with pytest.raises(SettingsError, match=r"expected otel:NAME, where NAME is .*console.*; got 'otel:nobodys'"):
        OTelExporter(config("otel:nobodys"))


def test_ours_is_a_metric_exporter():
    (entry,) = entry_points(group="opentelemetry_metrics_exporter", name="tensormeter")
    assert issubclass(entry.load(), MetricExporter)


PLAIN = """
import os
from opentelemetry import metrics
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
_OTelSDKConfigurator().configure()  # what opentelemetry-instrument does
provider = metrics.get_meter_provider()
provider.get_meter("m").create_gauge("queue", unit="{item}").set(5, {"q": "a"})
provider.get_meter("m").create_gauge("temperature").set(21.5)
provider.shutdown(timeout_millis=float(os.environ["TIMEOUT"]))
"""


def run_plain(environment, endpoint, timeout="120000"):
    return run_python(
        "-c",
        PLAIN,
        environment=environment
        | {
            "OTEL_METRICS_EXPORTER": "tensormeter",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=plain-sdk,service.instance.id=plain-1",
            "TENSORMETER_ENDPOINT": endpoint,
            "TENSORMETER_EXPORT_TIMEOUT": "3600",
            "TIMEOUT": timeout,
        },
        check=True,
    )


def test_a_program_of_the_plain_sdk_can_send_to_the_server(experiment_server, clean_environment):
    assert run_plain(clean_environment, experiment_server.url).stderr == ""
    (run,) = experiment_server.everything("plain-sdk").values()
    assert run["series"]["temperature"][0]["value"] == [21.5]
    assert run["series"]["queue"][0]["attributes"] == {"q": "a"}


def test_the_plain_sdk_reports_lost_points(clean_environment):
    done = run_plain(clean_environment, f"http://127.0.0.1:{reserve_port()}", timeout="1000")
    assert "lost 2 points" in done.stderr
    assert "Traceback" not in done.stderr


DIRECT = """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from tensormeter_exporters.metric_exporter import TensormeterMetricExporter
reader = InMemoryMetricReader()
MeterProvider([reader]).get_meter("m").create_gauge("g").set(1.0)
exporter = TensormeterMetricExporter()
assert exporter.export(reader.get_metrics_data(), timeout_millis=500) is MetricExportResult.FAILURE
"""


def test_the_time_that_the_sdk_gives_is_kept(clean_environment):
    """A server that takes the connection and says nothing; one attempt might take an hour, and the last export, too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = run_plain(clean_environment, endpoint, timeout="500")
        assert "lost 2 points" in done.stderr
        environment = clean_environment | {"TENSORMETER_ENDPOINT": endpoint, "TENSORMETER_EXPORT_TIMEOUT": "3600"}
        run_python("-c", DIRECT, environment=environment, check=True)


FLUSHING = """
import threading
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tensormeter_exporters.metric_exporter import TensormeterMetricExporter
reader = InMemoryMetricReader()
MeterProvider([reader]).get_meter("m").create_gauge("g").set(1.0)
data = reader.get_metrics_data()
exporter = TensormeterMetricExporter()
assert exporter.force_flush()
begun, sending = threading.Event(), exporter._exporter.export
exporter._exporter.export = lambda *arguments: begun.set() or sending(*arguments)
thread = threading.Thread(target=exporter.export, args=(data, 300_000))
thread.start()
assert begun.wait(300)
assert not exporter.force_flush(10)  # the server says nothing
exporter.shutdown()
thread.join(300)
assert exporter.force_flush(0)
"""


def test_a_flush_waits_for_an_export_under_way(clean_environment):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = clean_environment | {"TENSORMETER_ENDPOINT": endpoint, "TENSORMETER_EXPORT_TIMEOUT": "3600"}
        done = run_python("-c", FLUSHING, environment=environment)
    assert done.returncode == 0, done.stderr


FORKING = """
import os, signal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.resources import Resource
from tensormeter_exporters.metric_exporter import TensormeterMetricExporter
def data(who):
    reader = InMemoryMetricReader()
    resource = Resource.create({"service.name": "forking", "service.instance.id": who})
    MeterProvider([reader], resource).get_meter("m").create_gauge("g").set(1.0)
    return reader.get_metrics_data()
exporter = TensormeterMetricExporter()
assert exporter.export(data("parent")) is MetricExportResult.SUCCESS
exporter._lock.acquire()  # as a thread has it that sends while another one forks
child = os.fork()
if child == 0:
    signal.alarm(120)
    os._exit(0 if exporter.export(data("child")) is MetricExportResult.SUCCESS else 1)
assert os.waitpid(child, 0)[1] == 0
exporter._lock.release()
assert exporter.export(data("parent again")) is MetricExportResult.SUCCESS
"""


def test_a_forked_child_of_the_plain_sdk_sends_for_itself(experiment_server, clean_environment):
    run_python(
        "-c", FORKING, environment=clean_environment | {"TENSORMETER_ENDPOINT": experiment_server.url}, check=True
    )
    runs = experiment_server.get("/runs", project="forking")["runs"]
    assert len(runs) == 3


def test_equal_resources_and_scopes_are_grouped(make):
    """The SDK's encoder would keep the last of two equal scopes."""
    batches = [Batch(make.resource(), [make.gauge(name, [make.T0], [1.0])]) for name in ("a", "b")]
    data, _ = metrics_data([*batches, *decode_metrics(gzip.decompress(make.metrics(1, *batches).body))])
    (resource,) = ExportMetricsServiceRequest.FromString(sdk_encode(data).SerializeToString()).resource_metrics
    (scope,) = resource.scope_metrics
    assert [metric.name for metric in scope.metrics] == ["a", "b", "a", "b"]
