"""A run whose id comes again is attempted again; ranks of one attempt are not."""

import gzip
import json
import os

import pytest

import tensormeter
from support.processes import run_python
from tensormeter import SettingsError
from tensormeter.agent.attempts.counter import AttemptRecord
from tensormeter.agent.attempts.numbering import Settled
from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.conventions.attempt_number import Member
from tensormeter.otlp.batch import Event
from tensormeter.otlp.decode import decode_events
from tensormeter.ring.format import AUTOMATIC_STEPS


@pytest.fixture
def settings(run_settings):
    return run_settings(run_id="again")


def attempts(receiver):
    return {batch.resource["tensormeter.run.attempt"] for batch in receiver.batches()}


def test_attempts_are_counted(settings, receiver):
    for expected in (1, 2, 3):
        with tensormeter.init(settings=settings) as run:
            assert run.attempt == expected
            with tensormeter.init(settings=settings) as rank:  # another rank of the same attempt
                assert rank.attempt == expected
                rank.log({"x": 1.0}, 0)
    assert attempts(receiver) == {1, 2, 3}
    with tensormeter.init(settings=settings, id="other") as run:
        assert run.attempt == 1
    with tensormeter.init(settings=settings, id="from-another-machine", resume=True) as run:
        assert run.attempt == 2


@pytest.fixture
def record(settings):
    """The record of a run whose first attempt three hosts share, as it is on the disk."""
    directory = RunDirectory.create(settings, "again", "again")

    def read() -> AttemptRecord:
        return AttemptRecord.read(directory, settings.project)

    record = read()
    for process in ("alpha", "beta"):
        record.add(Member(process), 1, process, 0.0)
    record.settle(1, 5, None, confirmed=True)
    record.add(Member("gamma"), 5, "gamma", 0.0)
    record.write()
    return read


def test_hosts_that_share_a_directory_have_the_number_that_one_of_them_got(record):
    assert record().settled == {"alpha": 5, "beta": 5, "gamma": 5}


def test_the_number_that_was_given_first_holds(record):
    again = record()
    again.settle(5, 7, None, confirmed=True)
    again.add(Member("delta"), 8, "delta", 0.0)
    again.settle(8, 9, None, confirmed=False)
    assert again.settled == {"alpha": 5, "beta": 5, "gamma": 5}


@pytest.mark.parametrize("settled", [None, [1], "x", {"alpha": -5, "beta": 1 << 40, "gamma": True, "delta": "3"}])
def test_numbers_that_can_be_none_are_not_read(record, settled):
    known = record()
    document = json.loads(known.path.read_text()) | {"settled": settled}
    known.path.write_text(json.dumps(document))
    again = record()
    assert again.settled == {}
    assert (again.attempt, again.processes) == (5, known.processes)


@pytest.mark.parametrize(
    ("environment", "attempt"),
    [
        ({"TENSORMETER_ATTEMPT": "7", "SLURM_RESTART_COUNT": "3"}, 7),
        ({"SLURM_RESTART_COUNT": "3"}, 4),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, 3),
        # A job that was queued again begins a new torchrun, which counts from 0.
        ({"SLURM_RESTART_COUNT": "1", "TORCHELASTIC_RESTART_COUNT": "0"}, 2),
    ],
)
def test_a_scheduler_knows_better(settings, tmp_path, monkeypatch, environment, attempt):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    given = {"directory": tmp_path / "state", "buffer_directory": tmp_path / "rings", "mode": "offline", "agent": "off"}
    with tensormeter.init(settings=given) as run:
        assert run.attempt == attempt


def test_a_scheduler_that_has_restarted_nothing_says_nothing(settings, monkeypatch):
    """A torchrun that a user or Kubernetes starts again is a further attempt."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with tensormeter.init(settings=settings, id="elsewhere", resume=True) as run:
        assert run.attempt == 2


def test_resume_needs_an_id(settings):
    with pytest.raises(SettingsError, match="resume: the ID of the run to resume is missing"):
        tensormeter.init(settings=settings.replace(run_id=None), resume=True)


def test_in_a_notebook_a_run_ends_when_another_begins(tmp_path):
    script = """
import sys, types
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: object())
import tensormeter
given = {"directory": sys.argv[1], "buffer_directory": sys.argv[1], "mode": "offline", "agent": "off"}
first = tensormeter.init(settings=given)
second = tensormeter.init(settings=given)
assert first._finished and not second._finished
"""
    run_python("-c", script, tmp_path, check=True)


def numbers(receiver):
    """The attempt and whether it is provisional of each accepted request, and every name that begins like these."""
    return {
        tuple(
            sorted(
                (name, value) for name, value in batch.resource.items() if name.startswith("tensormeter.run.attempt")
            )
        )
        for batch in receiver.batches()
    }


def steps(receiver, process):
    return sorted(
        step
        for batch in receiver.batches()
        if batch.resource["service.instance.id"] == process
        for gauge in batch.gauges
        if gauge.name == "tensormeter.step"
        for step in gauge.values.tolist()
    )


def test_without_an_answer_the_number_is_provisional(settings, receiver):
    with tensormeter.init(settings=settings, resume=True) as run:
        run.log({"x": 1.0})
    assert numbers(receiver) == {(("tensormeter.run.attempt", 2), ("tensormeter.run.attempt.provisional", True))}
    assert steps(receiver, run._process.id) == [0]
    (question, *_) = receiver.questions
    assert question.startswith("/api/v1/runs/again/attempt?project=default&process=")
    receiver.received.clear()
    with tensormeter.init(settings=settings, resume=True) as run:
        run.log({"x": 1.0})
    assert numbers(receiver) == {(("tensormeter.run.attempt", 3), ("tensormeter.run.attempt.provisional", True))}
    assert steps(receiver, run._process.id) == [1]


def test_a_random_id_is_not_asked_for(settings, receiver):
    with tensormeter.init(settings=settings.replace(run_id=None)) as run:
        run.log({"x": 1.0})
    assert receiver.questions == []
    assert numbers(receiver) == {(("tensormeter.run.attempt", 1),)}


def test_a_run_with_a_random_id_that_is_resumed_is_another_attempt(settings, receiver, answering):
    """The agent of the first attempt may still run, and has asked for no number."""
    receiver.numbers = answering(200, b'{"attempt": 2, "last_step": 0}', "application/json")
    for _ in range(4):
        with tensormeter.init(settings=settings.replace(run_id=None)) as first:
            first.log({"x": 1.0})
        with tensormeter.init(settings=settings, id=first.id) as second:
            second.log({"x": 2.0})
        assert steps(receiver, second._process.id) == [1]
    assert numbers(receiver) == {(("tensormeter.run.attempt", number),) for number in (1, 2)}


def test_a_run_with_a_random_id_is_counted_without_a_server(settings):
    offline = settings.replace(mode="offline", run_id=None)
    with tensormeter.init(settings=offline) as first:
        first.log({"x": 1.0})
    with tensormeter.init(settings=offline, id=first.id) as second:
        assert second.attempt == 2
        second.log({"x": 2.0})
    with tensormeter.init(settings=offline, id=first.id) as third:
        assert third.attempt == 3


def test_a_server_answers_with_number_and_last_step(settings, receiver, answering):
    receiver.numbers = answering(200, b'{"attempt": 7, "last_step": 41}', "application/json")
    with tensormeter.init(settings=settings, resume=True) as run:
        run.log({"x": 1.0})
        run.log({"x": 2.0})
        run.log({"x": 3.0}, 100)
        run.log({"x": 4.0})
        run.log({"note": tensormeter.Text("at the last row's step")})
        run.alert("at the last row's step")
    assert numbers(receiver) == {(("tensormeter.run.attempt", 7),)}
    assert steps(receiver, run._process.id) == [42, 43, 100, 101]
    for request in receiver.accepted().values():
        assert b"unsettled" not in gzip.decompress(request.body)


def alert_steps(receiver):
    return {
        event.body["title"]: event.attributes.get("tensormeter.step")
        for request in receiver.accepted().values()
        if request.path == "/v1/logs"
        for _, events in decode_events(gzip.decompress(request.body))
        for event in events
        if event.name == "tensormeter.alert"
    }


@pytest.mark.parametrize("resume", [False, True])
def test_an_alert_before_the_first_row_has_no_step(settings, receiver, answering, resume):
    receiver.numbers = answering(200, b'{"attempt": 2, "last_step": 41}', "application/json")
    with tensormeter.init(settings=settings, resume=resume) as run:
        run.alert("before")
        run.log({"x": 1.0})
        run.alert("after")
    assert alert_steps(receiver) == {"before": None, "after": 42}


def test_a_phase_before_the_first_row_goes_on_behind_the_last_step(settings, receiver, answering):
    receiver.numbers = answering(200, b'{"attempt": 2, "last_step": 41}', "application/json")
    with tensormeter.init(settings=settings, resume=True) as run, run.phase("data_loading"):
        pass
    batches = [batch for batch in receiver.batches() if batch.resource["service.instance.id"] == run._process.id]
    assert {
        step for batch in batches for gauge in batch.gauges if gauge.name == "tensormeter.step" for step in gauge.values
    } == {42}


def test_an_old_event_before_the_first_row_has_no_step(settings):
    """An earlier version gave such an event the step before the first one."""
    step = {"tensormeter.step": AUTOMATIC_STEPS - 1}
    settled = Settled(Member(""), "unknown", resume=True, number=2, first_step=42)
    event = Event("tensormeter.alert", 1, None, step | {"key": "x"})
    assert settled.event(event).attributes == {"key": "x"}


@pytest.mark.parametrize("resume", [False, True])
def test_rows_from_inside_graphs_go_on_behind_the_last_step(settings, receiver, answering, resume):
    torch = pytest.importorskip("torch")
    receiver.numbers = answering(200, b'{"attempt": 2, "last_step": 41}', "application/json")
    with tensormeter.init(settings=settings, resume=resume) as run:
        inside = tensormeter.deferred_log(run, ["loss"], device="cpu")
        given = tensormeter.deferred_log(run, ["given"], device="cpu", first_step=7)
        for _ in range(2):
            inside.write({"loss": torch.zeros(())})
            given.write({"given": torch.zeros(())})
        inside.flush()
    assert sorted(steps(receiver, run._process.id)) == [7, 8, 42, 43]


def test_a_fork_continues_after_a_step_of_its_parent(settings, receiver, answering):
    with tensormeter.init(settings=settings.replace(run_id=None), fork_from="base@41") as random_id:
        random_id.log({"x": 1.0})
    with tensormeter.init(settings=settings, fork_from="base@41") as first:
        first.log({"x": 1.0})
    with tensormeter.init(settings=settings, fork_from="base@41") as second:
        second.log({"x": 1.0})
    assert [steps(receiver, run._process.id) for run in (random_id, first, second)] == [[42], [42], [43]]
    bodies = [
        event.body["forked_from"]
        for request in receiver.accepted().values()
        if request.path == "/v1/logs"
        for _, events in decode_events(gzip.decompress(request.body))
        for event in events
        if event.name == "tensormeter.run.start"
    ]
    assert bodies == [{"run": "base", "step": 41}] * 3


@pytest.mark.parametrize("parent", ["base", "@3", "base@", "base@-1", "base@x", "base@1.5", "base@" + "9" * 30, 3])
def test_a_wrong_parent_is_refused_at_once(settings, parent):
    with pytest.raises(SettingsError, match="fork_from: expected"):
        tensormeter.init(settings=settings, fork_from=parent)


def test_a_scheduler_gives_the_number_and_the_server_the_last_step(settings, receiver, answering, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    receiver.numbers = answering(200, b'{"attempt": 4, "last_step": 9}', "application/json")
    with tensormeter.init(settings=settings.replace(attempt=4), resume=True) as run:
        run.log({"x": 1.0})
    assert numbers(receiver) == {(("tensormeter.run.attempt", 4),)}
    assert "number=4" in receiver.questions[0]
    assert steps(receiver, run._process.id) == [10]


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"{}"),
        (200, b'{"attempt": 0, "last_step": 1}'),
        (200, b'{"attempt": true, "last_step": 1}'),
        (200, b'{"attempt": "2", "last_step": null}'),
        (200, b"[" * 100_000),
        (200, b"<html>"),
        (301, b""),
        (405, b""),
        (501, b""),
    ],
    ids=lambda answer: str(answer[1][:20]),
)
def test_an_answer_that_is_none_gives_no_number(settings, receiver, answering, answer):
    receiver.numbers = answering(*answer)
    with tensormeter.init(settings=settings, resume=True) as run:
        run.log({"x": 1.0})
    assert numbers(receiver) == {(("tensormeter.run.attempt", 2), ("tensormeter.run.attempt.provisional", True))}


def test_a_last_step_that_is_out_of_range_is_ignored(settings, receiver, answering):
    receiver.numbers = answering(200, b'{"attempt": 2, "last_step": 9999999999999999999999}', "application/json")
    with tensormeter.init(settings=settings, resume=True) as run:
        run.log({"x": 1.0})
    assert steps(receiver, run._process.id) == [0]


@pytest.mark.parametrize("word", ["yes", 1, 0.5, b"allow", []])
def test_other_words_for_resume_are_refused(settings, word):
    with pytest.raises(SettingsError, match="resume: expected True, False, allow, auto, must or never"):
        tensormeter.init(settings=settings, resume=word)


def test_a_refused_question_is_settled_once_a_request_is_accepted(settings, receiver, answering):
    receiver.numbers = answering(403)
    with tensormeter.init(settings=settings, resume=True) as run:
        run.log({"x": 1.0})
    assert numbers(receiver) == {(("tensormeter.run.attempt", 2), ("tensormeter.run.attempt.provisional", True))}


def test_children_are_of_their_parents_attempt_and_behind_the_same_step(settings, receiver, answering, wait_for):
    receiver.numbers = answering(200, b'{"attempt": 5, "last_step": 19}', "application/json")
    script = """
import os, sys, tensormeter
run = tensormeter.init(id="again", resume=True)
run.log({"x": 1.0})
child = os.fork()
if not child:
    run.log({"of the child": 1.0})
    run.finish()
    os._exit(0)
os.waitpid(child, 0)
run.finish()
"""
    environment = {
        "TENSORMETER_ENDPOINT": receiver.url,
        "TENSORMETER_DIR": str(settings.directory),
        "TENSORMETER_BUFFER_DIR": str(settings.buffer_directory),
    }
    run_python("-c", script, environment={**os.environ, **environment}, check=True)
    wait_for(
        lambda: len({batch.resource["service.instance.id"] for batch in receiver.batches()}) == 2, "the child's rows"
    )
    assert numbers(receiver) == {(("tensormeter.run.attempt", 5),)}
    for batch in receiver.batches():
        assert {
            step for gauge in batch.gauges if gauge.name == "tensormeter.step" for step in gauge.values.tolist()
        } == {20}
