"""A process joins a run while another process holds the agent's lock, as `tensormeter sync` does. The run gets an agent."""

import contextlib
import os
import shutil
import threading

import pytest

import tensormeter
from support.agents import kill_agents
from tensormeter.agent.agent import Agent
from tensormeter.agent.run_directory.agent_lock import MARK
from tensormeter.agent.run_directory.directory import RunDirectory, list_runs, runs_locked
from tensormeter.agent.sync import sync_runs
from tensormeter.ring.format import HeaderWord


@pytest.fixture
def settings(run_settings):
    settings = run_settings(run_id="r", project="p", agent="process")
    yield settings
    kill_agents(settings.directory)


@pytest.fixture
def directory(settings):
    with runs_locked(settings.directory):
        return RunDirectory.create(settings, "r", "r")


@pytest.fixture
def hold(directory):
    """Holds the agent's lock until the test releases it, or ends."""
    with contextlib.ExitStack() as held:

        def hold():
            lock = directory.try_agent_lock()
            assert lock is not None
            held.callback(os.close, lock)
            return held.close

        yield hold


@pytest.mark.parametrize("agent", ["process", "thread"])
@pytest.mark.parametrize("left", [b"", b"4711\n"], ids=["new", "killed"])
def test_a_run_whose_lock_is_held_at_its_start_gets_an_agent(
    settings, receiver, directory, hold, wait_for, agent, left
):
    """One row, and no call after it. An agent that was killed has left its process ID in the lock's file."""
    directory.agent_lock.write_bytes(left)
    release = hold()
    run = tensormeter.init(settings=settings.replace(agent=agent))
    run.log({"x": 1.0}, 1)
    release()
    wait_for(lambda: receiver.rows() == {(1, (("x", 1.0),)): 1}, "the row arrives")
    run.finish()
    wait_for(lambda: not directory.path.exists(), "nothing is left")


def test_a_run_that_starts_again_while_sync_delivers_it_gets_an_agent(settings, receiver, caplog, wait_for):
    asked, may_answer = threading.Event(), threading.Event()

    def answer(handler):
        asked.set()
        assert may_answer.wait(300)
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with tensormeter.init(settings=settings.replace(agent="off")) as run:
        run.log({"x": 1.0}, 1)
    receiver.routes["/v1/metrics"] = answer
    sync = threading.Thread(target=lambda: list(sync_runs(settings.directory)))
    sync.start()
    try:
        assert asked.wait(300)
        run = tensormeter.init(settings=settings)
    finally:
        may_answer.set()
        sync.join(300)
        receiver.routes.clear()
    (directory,) = list_runs(settings.directory)
    wait_for(lambda: run._process.ring.words[HeaderWord.PULSE], "the agent has a pulse")
    assert directory.agent_pid() not in (None, os.getpid())
    run.log({"x": 2.0}, 2)
    wait_for(lambda: (2, (("x", 2.0),)) in receiver.rows(), "the row arrives")
    run.finish()
    assert "started" not in caplog.text


def test_an_agent_without_a_lock_leaves_the_run_to_the_agent_that_has_it(settings, directory):
    lock = directory.try_agent_lock()
    os.pwrite(lock, MARK, 0)
    agent = Agent(directory, settings, [])
    assert (agent.run(), agent.error) == (False, "its agent is running")
    os.close(lock)


@pytest.mark.parametrize("end", ["removal", "stop"])
def test_an_agent_that_waits_for_the_lock_ends(settings, directory, hold, monkeypatch, end):
    """If the run was delivered and removed meanwhile, or if the agent is told to end."""
    waits = threading.Event()
    agent = Agent(directory, settings, [])
    wait = agent._pauses.wait
    monkeypatch.setattr(agent._pauses, "wait", lambda seconds: (waits.set(), wait(seconds)))
    release = hold()
    thread = threading.Thread(target=agent.run)
    thread.start()
    assert waits.wait(300)
    if end == "removal":
        shutil.rmtree(directory.path)
        release()
    else:
        agent.stop()
    thread.join(300)
    assert not thread.is_alive()
    assert directory.path.exists() == (end == "stop")
