"""Entry point of the agent process.

On SIGTERM or SIGINT, the agent moves the contents of the rings into the spool and exits. On SIGUSR1, it retries
delivery immediately.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from typing import Final

from tensormeter.agent.agent import Agent
from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.disk.private import open_file
from tensormeter.settings import Settings

__all__ = ["main"]

_NICE: Final = 5


def main(arguments: list[str]) -> int:
    """Run the agent: ``python -m tensormeter.agent RUN_DIRECTORY LOCKS DEATHS STANDBY NOTICE``.

    Standard input contains the description of the run and its settings as JSON. LOCKS is a comma-separated list of the
    descriptors that hold the agent's lock; it may be empty. The last three arguments are the initial state of
    `Standby`.
    """
    locks = [int(descriptor) for descriptor in arguments[1].split(",") if descriptor]
    for lock in locks:
        os.set_inheritable(lock, False)
    _allow_open_files()
    description = json.load(open(0, "rb", closefd=False))  # noqa: SIM115 - the next agent rereads standard input
    directory = RunDirectory.from_json(description["directory"])
    _open_log(directory)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    agent = Agent(directory, Settings.from_json(description["settings"]), locks)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    signal.signal(signal.SIGUSR1, lambda *_: agent.retry_now())
    # Publish the process ID only after the handlers are installed: until then, these signals would end the process.
    deaths, standby, notice = map(int, arguments[2:5])
    os.set_inheritable(notice, False)
    agent.become_agent((deaths, standby, notice))
    with contextlib.suppress(OSError):
        os.nice(max(0, _NICE - os.nice(0)))  # give the training process priority
    return 0 if agent.run() else 1


def _allow_open_files() -> None:
    """Raise the soft limit on open files to the hard limit, because the inherited soft limit may be low."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _open_log(directory: RunDirectory) -> None:
    """Redirect output to the run's log if output goes to /dev/null and the log can be opened."""
    if not os.path.samestat(os.fstat(1), os.stat(os.devnull)):
        return
    with contextlib.suppress(OSError):
        log = open_file(directory.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
