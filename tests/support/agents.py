"""Ending agents for good: one that is killed is followed by its standby."""

import contextlib
import threading
import time
from pathlib import Path

import psutil

__all__ = ["agents_of", "kill_agents"]


def agents_of(directory: Path) -> list[psutil.Process]:
    """The agents, and the processes that stand by for them, of the runs below a state directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if any("tensormeter" in part for part in command) and any(
                part.startswith(f"{directory}/runs/") for part in command
            ):
                found.append(process)
    return found


def kill_agents(directory: Path) -> None:
    """Kill them all with SIGKILL, until none is left. One that waits for a disk that hangs dies when that answers."""
    deadline = time.monotonic() + 60
    while (found := agents_of(directory)) and time.monotonic() < deadline:
        for process in sorted(
            found, key=lambda process: process.pid, reverse=True
        ):  # a standby is younger than its agent
            with contextlib.suppress(psutil.Error):
                process.kill()
        threading.Event().wait(0.01)
