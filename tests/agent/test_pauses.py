"""Pauses of the agent: what wakes it, when a pause would last an hour."""

import os
import threading

import pytest

import tensormeter
from support.receiver import answer
from tensormeter.agent import pauses as pauses_module
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.wakeup import Waker, Wakeup
from tensormeter.ring.format import HeaderWord


@pytest.fixture
def settings(run_settings, monkeypatch):
    """Settings with which the agent acts only when something wakes it."""
    monkeypatch.setattr(pauses_module, "_LONGEST", 3600)
    monkeypatch.setattr(pauses_module, "_LOOK", 3600)
    return run_settings(
        buffer_bytes=1 << 20,
        schedule_delay=3600,
        sample_interval=0,
        self_metrics_interval=0,
        heartbeat_interval=0,
        finish_timeout=60,
    )


def sleeps(run):
    return run._process.ring.words[HeaderWord.AGENT_SLEEPS]


def test_a_lane_that_fills_up_wakes_the_agent(settings, receiver, wait_for):
    run = tensormeter.init("p", settings=settings)
    rows = 0
    for _ in range(3):  # each time far less than what fits
        wait_for(lambda: sleeps(run), "the agent sleeps")
        for _ in range(3000):
            run.log({"loss": 0.5}, rows)
            rows += 1
        wait_for(lambda: not sleeps(run), "the agent is awake")
    run.finish()
    assert [step for step, _ in receiver.rows()] == list(range(rows))
    assert run._process.ring.drops() == {}


def test_a_look_finds_new_rows_and_ended_processes(settings, receiver, wait_for, monkeypatch):
    monkeypatch.setattr(pauses_module, "_LOOK", 0.05)
    run = tensormeter.init("p", settings=settings.replace(schedule_delay=0.05))
    wait_for(lambda: sleeps(run), "the agent sleeps")
    run.log({"loss": 0.5}, 1)
    wait_for(receiver.rows, "the row is delivered")
    wait_for(lambda: sleeps(run), "the agent sleeps")
    run._process.ring.release()  # as if the process had been killed
    wait_for(lambda: not run._process.ring.path.exists(), "the agent has noticed the end")
    run.finish(timeout=0)  # nobody can tell this process that its rows were delivered


def test_the_end_of_a_run_wakes_the_agent(settings, receiver, wait_for):
    run = tensormeter.init("p", settings=settings)
    run.log({"loss": 0.5}, 1)
    wait_for(lambda: sleeps(run), "the agent sleeps")
    run.finish()
    assert [step for step, _ in receiver.rows()] == [1]


def test_a_flush_wakes_the_agent(settings, receiver, wait_for):
    with tensormeter.init("p", settings=settings) as run:
        run.log({"loss": 0.5}, 1)
        wait_for(lambda: sleeps(run), "the agent sleeps")
        assert run._process.wait_for_flush(run._process.request_flush(), 60)
        assert [step for step, _ in receiver.rows()] == [1]


def test_another_process_of_the_run_wakes_the_agent(settings, receiver, wait_for):
    with tensormeter.init("p", id="r", settings=settings) as first:
        wait_for(lambda: sleeps(first), "the agent sleeps")
        with tensormeter.init("p", id="r", settings=settings) as second:
            wait_for(lambda: sleeps(second), "the agent has found the second process")


def test_the_pipe_is_gone_after_the_run(settings, wait_for):
    run = tensormeter.init("p", settings=settings)
    (directory,) = list_runs(settings.directory)
    wait_for(lambda: sleeps(run), "the agent sleeps")
    assert directory.wake_pipe.is_fifo()
    run.finish()
    wait_for(lambda: not directory.path.exists(), "the agent has ended")
    assert not directory.rings.exists()


@pytest.fixture
def directory(settings):
    run = tensormeter.init("p", settings=settings.replace(agent="off", mode="offline"))
    (directory,) = list_runs(settings.directory)
    yield directory
    run.finish()


def test_waits_end_once_for_each_cause(directory):
    wakeup, waker = Wakeup(), Waker(directory)
    assert wakeup.listen(directory)
    while wakeup.wait(0):  # the process of the run has already woken its agent
        pass
    for wake in (wakeup.wake, waker.wake):
        for _ in range(100_000):
            wake()
        assert wakeup.wait(3600)
    while wakeup.wait(0):
        pass
    threading.Timer(0.01, wakeup.wake).start()
    assert wakeup.wait(3600)
    waker.close()
    wakeup.close()


@pytest.mark.parametrize("obstacle", ["file", "link", "folder"])
def test_something_else_in_the_place_of_the_pipe(directory, tmp_path, obstacle):
    pipe, target = directory.wake_pipe, tmp_path / "target"
    pipe.unlink()
    target.write_text("kept")
    if obstacle == "file":
        pipe.write_text("")
    elif obstacle == "link":
        pipe.symlink_to(target)
    else:
        pipe.mkdir()
    waker, wakeup = Waker(directory), Wakeup()
    assert wakeup.listen(directory) == (obstacle != "folder")
    waker.wake()
    assert wakeup.wait(0) == (obstacle != "folder")
    waker.close()
    wakeup.close()
    assert target.read_text() == "kept"
    if obstacle == "folder":
        pipe.rmdir()


def test_a_pipe_that_was_deleted_is_created_again(directory):
    wakeup, waker = Wakeup(), Waker(directory)
    assert wakeup.listen(directory)
    while wakeup.wait(0):
        pass
    os.unlink(directory.wake_pipe)
    waker.wake()
    assert not wakeup.wait(0)
    assert wakeup.listen(directory)
    waker.wake()
    assert wakeup.wait(3600)
    waker.close()
    wakeup.close()


def test_a_program_that_closes_and_reuses_descriptors(directory, tmp_path):
    """Waking the agent writes nothing into the program's file, and `close` leaves the file open."""
    wakeup, waker = Wakeup(), Waker(directory)
    assert wakeup.listen(directory)
    descriptor, _ = waker._pipe
    with (tmp_path / "mine").open("wb") as mine:
        assert os.dup2(mine.fileno(), descriptor) == descriptor
    waker.wake()
    assert wakeup.wait(3600)
    waker.close()
    assert os.write(descriptor, b"kept") == 4
    os.close(descriptor)
    assert (tmp_path / "mine").read_bytes() == b"kept"
    wakeup.close()


def test_rows_are_sent_at_once_while_somebody_watches(settings, receiver, wait_for):
    with tensormeter.init("p", settings=settings) as run:
        receiver.script(*[answer(200, tensormeter_live="0.01")] * 1000)
        run._process.request_flush()
        for step in range(3):  # without a flush, the next batch is due in an hour
            run.log({"loss": 0.5}, step)
            wait_for(lambda: len(receiver.rows()) > step, "the row is delivered")  # noqa: B023
        receiver.script(None)
    assert [step for step, _ in receiver.rows()] == [0, 1, 2]
