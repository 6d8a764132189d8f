"""Runs that the version before the reorganisation of November 2026 (commit 4c6b853) left, delivered by this one.

`old_run.tar.xz` was made with that version: a run of ten rows of `a` and `bad` and an image, without its reserve and rings. Each
of its destinations is in another state; `accepted.json` lists the ids and values that the old version has delivered.
"""

import gzip
import json
import tarfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tensormeter.agent.delivery import delivery
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.sync import sync_runs
from tensormeter.exporter import Accepted, Rejected
from tensormeter.otlp.decode import decode_events, decode_metrics


@pytest.fixture
def state(tmp_path):
    with tarfile.open(Path(__file__).with_name("old_run.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def accepted(state, monkeypatch):
    """The accepted requests as (id, values), by the label of the destination. `refusing` refuses `bad`."""
    (path,) = state.glob("runs/old@*")
    requests = {
        name.partition(":")[2]: [(batch, [tuple(value) for value in values]) for batch, values in old]
        for name, old in json.loads((path / "accepted.json").read_text()).items()
    }
    (path / "accepted.json").unlink()

    class Scripted:
        independent_signals = False

        def __init__(self, config):
            self._label = config.destination.partition(":")[2]

        def export(self, request):
            values = values_of(request)
            if self._label in ("refusing", "signals") and any(name == "bad" for name, _ in values):
                return Rejected("no bad", divide=True)
            requests[self._label].append((request.id, values))
            return Accepted()

        def shutdown(self):
            pass

    class OfOneSignal(Scripted):
        independent_signals = True

    monkeypatch.setattr(delivery, "load_exporter", lambda name: OfOneSignal if name == "jsonl:signals" else Scripted)
    return requests


def values_of(request):
    body = gzip.decompress(request.body)
    if request.signal == "logs":
        return [("event", event.name) for _, events in decode_events(body) for event in events]
    return [(s.name, value) for batch in decode_metrics(body) for s in batch.series for value in s.values.tolist()]


def points(requests):
    return Counter(value for _, values in requests for value in values if value[0] in ("a", "bad"))


ALL = Counter({("a", step * 1.0): 1 for step in range(10)} | {("bad", step * 2.0): 1 for step in range(10)})
GOOD = Counter({value: number for value, number in ALL.items() if value[0] == "a"})


def test_each_request_and_each_point_is_delivered_once(state, accepted):
    (result,) = sync_runs(state)
    assert result.delivered, result.outcome
    assert points(accepted["aside"]) < ALL
    with closing(Spool(result.run.spool)) as spool:
        spool.retry()
    (result,) = sync_runs(state)
    assert result.delivered, result.outcome
    del accepted["kept"]
    for label, requests in accepted.items():
        assert len({batch for batch, _ in requests}) == len(requests), label
        assert points(requests) == (GOOD if label in ("refusing", "signals") else ALL), label
        events = Counter(value for _, values in requests for value in values if value[0] == "event")
        assert events[("event", "tensormeter.image")] == 1, (label, events)
    assert {destination for destination, _, _ in result.leftover.rejected} == {"jsonl:refusing", "jsonl:signals"}


def test_accepted_requests_that_may_not_be_durable_are_sent_again_under_their_ids(state, accepted):
    before = [batch for batch, _ in accepted["kept"]]
    list(sync_runs(state))
    assert [batch for batch, _ in accepted["kept"]] == before * 2
