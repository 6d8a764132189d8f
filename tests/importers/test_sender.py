"""Requests that a server, or a proxy in front of it, refuses for their size are sent in halves."""

import gzip

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from support.otlp_receivers import Http
from tensormeter.importers.sender import ServerSender
from tensormeter.importers.tally import Tally
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.point_selection import all_points
from tensormeter.settings import Settings

RESOURCE = {"service.name": "p", "tensormeter.run.id": "r"}
LIMIT = 4000


@pytest.fixture
def receiver():
    receiver = Http()
    receiver.limit = LIMIT
    yield receiver
    receiver.stop()


def rows(first, number):
    steps = np.arange(first, first + number)
    values = np.random.default_rng(first).normal(size=number)
    times = (1_750_000_000_000_000_000 + steps).astype(np.uint64)
    return encode_metrics([Batch(RESOURCE, [Gauge(STEP_METRIC, times, steps), Gauge("loss", times, values)])])


def test_large_requests_are_halved_without_losing_or_parting_rows(receiver):
    tally = Tally()
    sender = ServerSender(Settings(endpoint=receiver.url), tally)
    sender.send("metrics", rows(0, 1000), 2000)
    sender.flush()
    refused = len(receiver.received) - len(receiver.accepted)
    sender.send("metrics", rows(1000, 1000), 2000)
    sender.flush()
    sender.close()
    assert refused > 0
    # The second request is divided before it is sent, because its size is known to be too large.
    assert len(receiver.received) - len(receiver.accepted) < 2 * refused
    messages = [ExportMetricsServiceRequest.FromString(gzip.decompress(body)) for body in receiver.accepted]
    assert all(len(body) <= LIMIT for body in receiver.accepted)
    times = [point.time_unix_nano for message in messages for point in all_points(message)]
    assert len(times) == 4000
    assert len(set(times)) == 2000
    for message in messages:
        counted = np.unique([point.time_unix_nano for point in all_points(message)], return_counts=True)[1]
        assert set(counted.tolist()) == {2}
    assert dict(tally.left_out) == {}


def test_a_single_item_that_is_too_large_is_left_out(receiver):
    tally = Tally()
    sender = ServerSender(Settings(endpoint=receiver.url), tally)
    noise = np.random.default_rng(0).bytes(2 * LIMIT).hex()
    events = [Event("small", 1, {"x": 1}, {}), Event("large", 2, {"x": noise}, {})]
    sender.send("logs", encode_events(RESOURCE, events), 2)
    sender.flush()
    sender.close()
    assert len(receiver.accepted) == 1
    assert dict(tally.left_out) == {"items that the server refused": 1}
    assert "413" in tally.faults[0]
