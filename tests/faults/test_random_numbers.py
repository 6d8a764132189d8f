"""A training that sets its seeds draws the same numbers with and without recording and delivery."""

import pytest

from support.optional import needs_torch
from support.processes import run_python

pytestmark = needs_torch
TRAINING = """
import random
import numpy as np
import torch
import tensormeter
from tensormeter.instruments import configure

random.seed(7)
np.random.seed(7)
torch.manual_seed(7)

def states():
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()

before = states()
model = torch.nn.Linear(64, 64)
after = states()
assert before != after
with tensormeter.init("seeds") as run:
    run.watch(model)
    meter = configure(run=run).get_meter("training")
    counter, histogram = meter.create_counter("steps"), meter.create_histogram("loss")
    for step in range(20):
        model(torch.ones(8, 64)).sum().backward()
        loss = torch.tensor(0.5)
        run.log({"loss": loss, "lr": 0.1, "weights": tensormeter.Histogram(torch.ones(100_000))}, step)
        counter.add(1)
        histogram.record(0.5)
    run.log({"image": tensormeter.Image(np.zeros((8, 8, 3), np.uint8))}, 20)
    run.update_config({"batch": 8})
assert states() == after
"""

EXPORTER = """
import random
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from tensormeter_exporters.metric_exporter import TensormeterMetricExporter

random.seed(7)
before = random.getstate()
reader = InMemoryMetricReader()
MeterProvider([reader]).get_meter("training").create_gauge("loss").set(1.0)
assert TensormeterMetricExporter().export(reader.get_metrics_data(), 300_000) is MetricExportResult.SUCCESS
assert random.getstate() == before
"""


@pytest.mark.parametrize("agent", ["thread", "process"])
def test_a_run_leaves_random_generators_alone(environment, receiver, answering, agent):
    receiver.script(answering(503), "reset", answering(503))
    settings = {"TENSORMETER_AGENT": agent, "TENSORMETER_FINISH_TIMEOUT": "300"}
    run_python("-c", TRAINING, environment=environment | settings, check=True)
    assert sum(not request.accepted for request in receiver.received) >= 3
    assert any(request.accepted for request in receiver.received)


def test_an_exporter_of_the_plain_sdk_leaves_random_generators_alone(environment, receiver, answering):
    receiver.script(answering(503), "reset")
    run_python("-c", EXPORTER, environment=environment, check=True)
    assert [request.accepted for request in receiver.received] == [False, False, True]
