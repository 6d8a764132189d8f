"""Processes whose rings are gone and whose ends the spool does not have: what is sent, and what is said."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys

import pytest

import tensormeter.agent.spool.process_origin as origin_module
from tensormeter.agent.agent import Agent
from tensormeter.agent.ingest.cut_processes import end_cut_processes
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.spool.process_origin import Origin
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.sync import sync_runs
from tensormeter.otlp.decode import decode_events
from tensormeter.settings import Settings

RESOURCE = {"service.name": "demo", "service.instance.id": "p1", "tensormeter.run.id": "r", "tensormeter.rank": 3}


@pytest.fixture
def dead():
    """Process id of a process that has ended, and its origin."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return Origin.of(process.pid, RESOURCE, child=False)


@pytest.fixture
def begin(spool):
    """Puts the beginning of a process into the spool."""

    def begin(origin, process="p1", **state):
        text = origin if isinstance(origin, str) else origin.to_json()
        spool.put([], ["experiment"], process, {}, **{"started": True, "ended": False} | state, origin=text)

    return begin


def ends(spool):
    end_events = []
    sequence = 0
    while head := spool.head("experiment", after=sequence):
        sequence = head.sequence
        body = gzip.decompress(spool.read(sequence).body)
        end_events += [
            (event.name, event.body, resource) for resource, events in decode_events(body) for event in events
        ]
    return end_events


def end_cut(spool, present=(), **options):
    return end_cut_processes(spool, present, ["experiment"], {}, **options)


def test_an_origin_comes_back_from_the_spool(spool, begin, dead):
    begin(dead)
    ((process, ended, text),) = spool.processes()
    assert (process, ended, Origin.from_json(text)) == ("p1", False, dead)


@pytest.mark.parametrize("text", ["", "null", "{}", "[", '{"host": 1}', "[" * 100_000])
def test_what_is_no_origin_is_none(text):
    assert Origin.from_json(text) is None


def test_a_process_that_is_gone_has_crashed(spool, begin, dead):
    begin(dead)
    (message,) = end_cut(spool)
    assert message.startswith("the process is gone")
    assert message.endswith("its last values may be missing")
    ((name, body, resource),) = ends(spool)
    assert (name, body["state"], resource) == ("tensormeter.run.end", "crashed", RESOURCE)
    assert "may be missing" in body["message"]
    assert spool.lifecycle("p1") == (True, True)
    assert end_cut(spool) == []
    assert len(ends(spool)) == 1


def test_after_another_boot_the_machine_lost_power(spool, begin, dead, monkeypatch):
    begin(dataclasses.replace(Origin.of(os.getpid(), RESOURCE, child=False)))
    monkeypatch.setattr(origin_module, "_boot", lambda: "another")
    (message,) = end_cut(spool)
    assert message.startswith("the machine lost power or was restarted")
    assert ends(spool)[0][1]["state"] == "crashed"


def test_a_process_that_lives_is_not_ended(spool, begin):
    begin(Origin.of(os.getpid(), RESOURCE, child=False))
    assert len(end_cut(spool)) == 1
    assert ends(spool) == []
    assert spool.lifecycle("p1") == (True, False)


def test_a_process_of_another_machine_is_not_ended(spool, begin, dead):
    begin(dataclasses.replace(dead, host="elsewhere"))
    assert end_cut(spool) == [
        "the process had not ended when its spool was last written; its last values may be missing"
    ]
    assert ends(spool) == []


def test_a_process_whose_ring_is_there_is_left_to_that(spool, begin, dead):
    begin(dead)
    assert end_cut(spool, present=["p1"]) == []
    assert ends(spool) == []


@pytest.mark.parametrize("resource", [{"a": {"b": None}}, {"a": [[[1]], object]}, {"a" * 70000: "x"}])
def test_a_resource_that_is_none_holds_up_nothing(spool, begin, dead, resource):
    text = json.dumps(dataclasses.asdict(dataclasses.replace(dead, resource=resource)), default=str)
    begin(text)
    assert len(end_cut(spool)) == 1
    assert spool.lifecycle("p1") == (True, True)


def test_a_child_ends_no_run(spool, begin, dead):
    begin(dataclasses.replace(dead, child=True))
    assert len(end_cut(spool)) == 1
    assert ends(spool) == []
    assert spool.lifecycle("p1") == (True, True)


def test_a_process_that_has_ended_is_not_mentioned(spool, begin, dead):
    begin(dead, ended=True)
    assert end_cut(spool) == []


def test_without_any_sync_all_may_be_missing_after_a_reboot(spool, begin, dead, monkeypatch):
    begin(dead, ended=True)
    assert end_cut(spool, synced=False) == []
    monkeypatch.setattr(origin_module, "_boot", lambda: "another")
    (message,) = end_cut(spool, synced=False)
    assert "any of its values may be missing" in message


def test_the_first_words_of_a_process_are_synced_with_any_durability(tmp_path, dead):
    spool = Spool(tmp_path / "other.sqlite", durability="none")
    kinds = []
    spool._database.set_trace_callback(
        lambda statement: kinds.append(statement) if "synchronous" in statement else None
    )
    spool.put([Encoded("logs", b"x", 1)], ["experiment"], "p1", {}, started=True, ended=False, origin=dead.to_json())
    spool.put([Encoded("logs", b"x", 1)], ["experiment"], "p1", {}, started=True, ended=False)
    assert kinds == ["PRAGMA synchronous = FULL", "PRAGMA synchronous = OFF"]
    spool.close()


def test_the_end_is_sent_though_delivery_had_nothing_to_do_before(tmp_path, dead, receiver, wait_for, monkeypatch):
    settings = Settings(directory=tmp_path / "state", endpoint=receiver.url, run_id="r")
    with runs_locked(settings.directory):
        directory = RunDirectory.create(settings, "r", "r")
    spool = Spool(directory.spool)
    spool.put([], ["experiment"], "p1", {}, started=True, ended=False, origin=dead.to_json())
    spool.close()

    class LateAgent(Agent):
        def _discover(self, spool):
            wait_for(lambda: self._deliveries.are_idle, "all have looked")
            super()._discover(spool)

    monkeypatch.setattr("tensormeter.agent.agent.Agent", LateAgent)
    (result,) = sync_runs(settings.directory)
    assert result.delivered
    assert [(name, body["state"]) for name, body in receiver.events()] == [("tensormeter.run.end", "crashed")]
