"""Statistics on their way into the spool: from the first training process of a run to its last."""

import gzip

import pytest

from support.processes import run_python
from support.spools import take_requests
from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.agent.node_metrics import NodeMetrics
from tensormeter.errors import SpoolError
from tensormeter.otlp.batch import Sum
from tensormeter.otlp.decode import decode_metrics
from tensormeter.resource import describe_node, describe_process
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import State
from tensormeter.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(directory=tmp_path, sample_interval=0.1, schedule_delay=0.01, exporters=["experiment"])


@pytest.fixture
def statistics(spool, settings):
    statistics = NodeMetrics(spool, settings)
    yield statistics
    statistics.stop()


@pytest.fixture
def begin(new_source, spool, settings):
    """Begins a process of the run: (its recorder, its drain)."""

    def make(name="p", parent=None):
        resource = describe_process("project", "run", "run", name)
        source = new_source({"resource": resource, "config": {}, "parent": parent})
        return source, RingDrainer(RingFile.open(source.path), spool, settings.exporters, settings)

    return make


def batches(spool):
    """Everything in the spool, which is empty afterwards."""
    requests = [request for request in take_requests(spool, "experiment") if request.signal == "metrics"]
    return [batch for request in requests for batch in decode_metrics(gzip.decompress(request.body))]


def sampling(samplers):
    return [sampler.name for sampler in samplers if not sampler.over]


def another_sample(statistics, wait_for):
    """Wait for a sample that no request contains yet."""
    (host,) = [sampler for sampler in statistics._node._samplers if sampler.name == "host"]
    before = host.samples
    wait_for(lambda: host.samples > before, "another sample")


def test_one_set_for_all_processes_of_the_run(statistics, begin, spool, wait_for):
    first, second = begin("a"), begin("b")
    drains = [first[1], second[1]]
    wait_for(lambda: statistics.advance(drains, flush=False), "the first samples are in the spool")
    wait_for(lambda: statistics.advance(drains, flush=False), "and the next")
    node_batches = batches(spool)
    assert len(node_batches) == 2
    for batch in node_batches:
        assert batch.resource == describe_node(first[1].resource) == describe_node(second[1].resource)
        assert batch.resource["tensormeter.run.id"] == "run"
    trainers = {
        series.attributes["tensormeter.process.id"]
        for batch in node_batches
        for series in batch.series
        if series.name == "process.thread.count" and series.attributes["tensormeter.process.role"] == "trainer"
    }
    assert trainers == {drain.ring.process for drain in drains}
    (host,) = [series for series in node_batches[1].series if series.name == "system.cpu.logical.count"]
    assert isinstance(host, Sum)
    assert len(host.times) > 1


def test_the_last_samples_are_there_before_the_run_has_ended(statistics, begin, spool, wait_for):
    source, drain = begin()
    wait_for(lambda: statistics.advance([drain], flush=False), "the first samples are in the spool")
    another_sample(statistics, wait_for)
    samplers = statistics._node._samplers
    batches(spool)
    source.recorder.close(State.FINISHED)
    assert statistics.advance([drain], flush=False)
    assert batches(spool)
    wait_for(lambda: not sampling(samplers), "no sampler is left")
    assert not statistics.advance([drain], flush=False)
    # Another process of the run comes: it begins again.
    wait_for(lambda: statistics.advance([drain, begin("c")[1]], flush=False), "samples are in the spool again")


def test_a_child_is_no_reason_to_sample(statistics, begin):
    _, drain = begin(parent="p")
    assert not statistics.advance([drain], flush=False)
    assert statistics._node is None


def test_a_stopping_agent_puts_away_what_there_is(statistics, begin, spool, wait_for):
    _, drain = begin()
    wait_for(lambda: statistics.advance([drain], flush=False), "the first samples are in the spool")
    another_sample(statistics, wait_for)
    assert statistics.advance([drain], flush=True)
    assert not statistics.advance([drain], flush=True)


def test_a_spool_that_refuses_is_tried_again(statistics, begin, spool, wait_for, monkeypatch, caplog):
    _, drain = begin()
    monkeypatch.setattr("tensormeter.agent.node_metrics._RETRY_DELAY", 0.01)

    def refuse(*arguments, **options):
        raise SpoolError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(spool, "put", refuse)

        def refused():
            assert not statistics.advance([drain], flush=False)
            return caplog.text

        wait_for(refused, "the refusal is reported")
        waiting = statistics._waiting
        assert not statistics.advance([drain], flush=False)
        assert statistics._waiting is waiting
    wait_for(lambda: statistics.advance([drain], flush=False), "the waiting rows are in the spool")
    assert batches(spool)[0].points == waiting.items
    assert caplog.text.count("the disk is full") == 1


def test_an_agent_that_does_not_sample_has_no_sensors():
    """With an interval of 0, nothing of the SDK's metrics is loaded."""
    code = "import sys, tensormeter.agent.agent; print('tensormeter.sensors' in sys.modules)"
    assert run_python("-c", code, check=True).stdout == "False\n"
