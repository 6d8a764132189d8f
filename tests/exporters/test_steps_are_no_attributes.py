"""A step as an attribute would make every step a time series. On no route is it one."""

import gzip
import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics as sdk_encode
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from support.processes import run_python
from support.spools import take_requests
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.spool.spool import Spool
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.json_lines import encode_line
from tensormeter_exporters.otel import metrics_data
from tensormeter_exporters.otlp_series import read_metrics, scalars

STEPS = [3, 1, 4, 15, 92653]

OFFLINE = """
import sys, tensormeter
with tensormeter.init(project="steps", id="r", mode="offline") as run:
    for step in map(int, sys.argv[1:]):
        run.log({"loss": 0.5, "tokens": 7}, step)
"""


def attributes(message: ExportMetricsServiceRequest) -> set[tuple[str, str]]:
    """(metric, attribute) of every point, of scopes as `scope` and of resources as `resource`."""
    keys = set()
    for resource in message.resource_metrics:
        keys |= {("resource", attribute.key) for attribute in resource.resource.attributes}
        for scope in resource.scope_metrics:
            keys |= {("scope", attribute.key) for attribute in scope.scope.attributes}
            for metric in scope.metrics:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    keys |= {(metric.name, attribute.key) for attribute in point.attributes}
    return keys


def steps_in(message: ExportMetricsServiceRequest) -> set[tuple[str, str]]:
    return {(metric, key) for metric, key in attributes(message) if "step" in key.lower()}


@pytest.fixture(scope="module")
def spooled(tmp_path_factory, clean_environment):
    """The metrics requests of a real run, as they lie in its spool for every destination."""
    folder = tmp_path_factory.mktemp("steps")
    buffers = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else folder
    run_python(
        "-c",
        OFFLINE,
        *STEPS,
        environment=clean_environment
        | {
            "TENSORMETER_DIR": str(folder),
            "TENSORMETER_BUFFER_DIR": str(buffers),
            "TENSORMETER_SAMPLE_INTERVAL": "0",
            "TENSORMETER_CONSOLE": "off",
            "TENSORMETER_SELF_METRICS_INTERVAL": "0",
        },
        check=True,
    )
    (run,) = list_runs(folder)
    with closing(Spool(run.spool)) as spool:
        return [request for request in take_requests(spool, "experiment") if request.signal == "metrics"]


def parsed(request):
    return ExportMetricsServiceRequest.FromString(gzip.decompress(request.body))


def test_the_detector_detects(make):
    planted = make.gauge("loss", [make.T0], [1.0], step="3")
    assert steps_in(parsed(make.logged(1, [planted]))) == {("loss", "step")}


def test_spooled_requests_have_steps_next_to_values(spooled):
    assert spooled
    for request in spooled:
        assert steps_in(parsed(request)) == set()
    losses = [stepped for request in spooled for stepped in read_metrics(request) if stepped.name == "loss"]
    assert [step for stepped in losses for step in stepped.steps.tolist()] == STEPS


def test_files_have_no_attributes_of_steps(spooled):
    for request in spooled:
        document = json.loads(encode_line("metrics", gzip.decompress(request.body)))
        for resource in document["resourceMetrics"]:
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    assert all("attributes" not in point for point in metric["gauge"]["dataPoints"])


def test_exporters_of_the_sdk_get_no_attributes_of_steps(spooled):
    for request in spooled:
        data, _ = metrics_data(decode_metrics(gzip.decompress(request.body)))
        message = ExportMetricsServiceRequest.FromString(sdk_encode(data).SerializeToString())
        assert steps_in(message) == set()
        names = {metric.name for metric in message.resource_metrics[0].scope_metrics[0].metrics}
        assert names == {"loss", "tokens", "tensormeter.step"}


def test_names_of_series_contain_no_steps(spooled):
    """The sources of the names and labels of MLflow, TensorBoard, W&B and Prometheus."""
    for request in spooled:
        names = {numbers.name for stepped in read_metrics(request) for numbers in scalars(stepped)}
        assert names == {"loss", "tokens"}
