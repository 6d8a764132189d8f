"""Agents that are killed, with and without the process that stands by: another one comes, and nothing outlives the run."""

import os
import signal

import psutil
import pytest

import tensormeter
from support.agents import agents_of, kill_agents, standby_of
from tensormeter.agent.launch import replace_agent
from tensormeter.agent.run_directory.directory import list_runs


@pytest.fixture
def agent(state, wait_for):
    """Gives the process of the only run's agent, once it handles signals and has a standby."""

    def agent(*others):
        pids = []

        def has_standby():
            pids[:] = [run.agent_pid() for run in list_runs(state)]
            return pids and pids[0] not in (None, *others) and len(agents_of(state)) == 2

        wait_for(has_standby, "an agent and its standby")
        return psutil.Process(pids[0])

    return agent


def test_fault_125_an_agent_is_replaced_though_nothing_is_logged(train, receiver, state, agent, gone, oracle, wait_for):
    """Again and again: each one that had worked is followed by its standby, and that by another standby."""
    trainer = train("run = tensormeter.init('faults')\nlog(run, range(500))\nready()\nrun.finish(timeout=300)\n")
    trainer.ready()
    killed = []
    for _ in range(5):
        wait_for(lambda: sum(receiver.points().values()) == 3 * 500, "the agent has worked")
        process = agent(*killed)
        successor = wait_for(lambda process=process: standby_of(process), "a standby")
        killed.append(process.pid)
        process.kill()
        assert agent(*killed).pid == successor.pid
    trainer.go()
    trainer.finish()
    gone()
    wait_for(lambda: not agents_of(state), "no process outlives the run")
    oracle.agrees(receiver, range(500))


def test_a_standby_is_replaced(train, state, agent, gone, wait_for):
    trainer = train("run = tensormeter.init('faults')\nready()\n")
    trainer.ready()
    process = agent()
    standby = wait_for(lambda: standby_of(process), "a standby")
    standby.kill()
    wait_for(lambda: standby_of(process) not in (None, standby), "another standby")
    assert agent().pid == process.pid
    trainer.go()
    trainer.end()
    gone()
    wait_for(lambda: not agents_of(state), "no process outlives the run")


def test_fault_126_where_both_are_killed_a_log_call_brings_them_back(
    train, receiver, state, agent, gone, oracle, wait_for
):
    trainer = train(
        "run = tensormeter.init('faults')\nlog(run, range(500))\nsteps = 500\n"
        "while ready() == 'go':\n    log(run, range(steps, steps + 500))\n    steps += 500\nrun.finish(timeout=300)\n",
        buffer_bytes=64 << 20,
    )
    trainer.ready()
    first = agent()
    kill_agents(state)
    steps = 500

    def logs():
        nonlocal steps
        trainer.go("go")
        trainer.ready()
        steps += 500
        return agents_of(state)

    wait_for(logs, "a log call starts an agent")
    agent(first.pid)
    trainer.go("end")
    errors = trainer.finish()
    assert errors.count("started a new one") == 1
    gone()
    oracle.agrees(receiver, range(steps))


def test_fault_194_where_both_are_killed_a_rare_log_call_brings_them_back(train, receiver, state, agent, gone, oracle):
    """Two rows a second: after a few of them, not only after 4 KiB."""
    trainer = train(
        "import logging\nmessages, steps = [], 3\n"
        "logging.getLogger('tensormeter').addFilter(lambda record: messages.append(record.getMessage()) or True)\n"
        "run = tensormeter.init('faults')\nlog(run, range(3))\nready()\n"
        "while steps < 3 + 20 and not any('started a new one' in text for text in messages):\n"
        "    log(run, [steps])\n    steps += 1\n    threading.Event().wait(0.5)\n"
        "ready()\nrun.finish(timeout=300)\n"
    )
    trainer.ready()
    first = agent()
    kill_agents(state)
    trainer.go()
    trainer.ready()
    steps = trainer.returned
    assert steps < 3 + 20
    agent(first.pid)
    trainer.go()
    trainer.finish()
    gone()
    oracle.agrees(receiver, range(steps))


def test_an_agent_that_is_told_to_end_is_not_replaced_by_its_standby(train, state, agent, gone, wait_for):
    trainer = train("run = tensormeter.init('faults')\nready()\nrun.finish(timeout=300)\n")
    trainer.ready()
    agent().terminate()
    wait_for(lambda: not agents_of(state), "both have ended")
    trainer.go()
    errors = trainer.finish()
    assert "started a new one" in errors
    gone()


def test_fault_127_an_agent_that_is_suspended_is_not_replaced(run_settings, receiver, wait_for):
    """Its lock in shared memory is held, and no process has to look at the disk."""
    settings = run_settings(agent="process", schedule_delay=0.01)
    run = tensormeter.init("faults", settings=settings)
    (directory,) = list_runs(settings.directory)
    wait_for(receiver.events, "the agent has worked, so its standby has both locks")
    wait_for(lambda: directory.agent_pid() and len(agents_of(settings.directory)) == 2, "an agent and its standby")
    before = {process.pid for process in agents_of(settings.directory)}
    pid = directory.agent_pid()
    os.kill(pid, signal.SIGSTOP)
    run._process._monitor._tend(stopped=True)
    assert {process.pid for process in agents_of(settings.directory)} == before
    directory.agent_lock.unlink()
    assert not replace_agent(directory, settings)
    os.kill(pid, signal.SIGCONT)
    run.finish()


def test_the_process_that_records_has_one_thread_and_forks_without_warnings(train, agent, gone):
    trainer = train(
        "import warnings\nwarnings.simplefilter('error')\nrun = tensormeter.init('faults')\nready()\nlog(run, range(5000))\n"
        "assert len(os.listdir('/proc/self/task')) == 1\n"
        "if (child := os.fork()) == 0: os._exit(0)\nos.waitpid(child, 0)\nrun.finish(timeout=300)\n"
    )
    trainer.ready()
    agent()
    trainer.go()
    status, errors = trainer.end()
    assert (status, errors) == (0, "")
    gone()
