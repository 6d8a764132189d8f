"""Finds and kills the agents of runs."""

import contextlib
import os
import re
import sys
import threading
import time
from pathlib import Path

import psutil

from tensormeter.agent.run_directory.directory import RunDirectory

__all__ = ["agent_lives", "agents_of", "join_agents", "kill_agents", "standby_of"]

_TWO_LOCKS = re.compile(r"\d+,\d+")


def agent_lives(run: RunDirectory) -> bool:
    """Whether an agent holds the lock of a run."""
    lock = run.try_agent_lock()
    if lock is not None:
        os.close(lock)
    return lock is None


def agents_of(directory: Path) -> list[psutil.Process]:
    """The agents, and the processes that stand by for them, of the runs below a state directory."""
    agents = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if any("tensormeter" in part for part in command) and any(
                part.startswith(f"{directory}/runs/") for part in command
            ):
                agents.append(process)
    return agents


def standby_of(agent: psutil.Process) -> psutil.Process | None:
    """The process that stands by for an agent, once it holds both locks of the run: an earlier one is replaced."""
    for process in agent.children():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command[:1] == [sys.executable] and any(_TWO_LOCKS.fullmatch(part) for part in command):
                return process
    return None


def join_agents(*names: str) -> None:
    """Wait until the agents in threads of this process have ended. Each needs its receiver until then.

    Args:
        names: Beginnings of the names of other threads that must end, too.
    """
    deadline = time.monotonic() + 60
    for thread in threading.enumerate():
        if thread.name.startswith(("tensormeter-agent", *names)):
            thread.join(max(deadline - time.monotonic(), 0))
            assert not thread.is_alive(), f"the test leaves {thread.name} behind"


def kill_agents(directory: Path) -> None:
    """Kill them all with SIGKILL, until none is left: an agent that is killed is followed by its standby.

    An agent that waits for a disk that hangs dies when the disk answers.
    """
    deadline = time.monotonic() + 60
    while (agents := agents_of(directory)) and time.monotonic() < deadline:
        # A standby is younger than its agent.
        for process in sorted(agents, key=lambda process: process.pid, reverse=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        threading.Event().wait(0.01)
