"""Functions that start the agent from the training process."""

import contextlib
import fcntl
import json
import os
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tensormeter.agent.run_directory.agent_lock import MARK
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.disk.private import open_file
from tensormeter.logger import get_logger
from tensormeter.settings import Settings
from tensormeter.standby import begin_command

if TYPE_CHECKING:
    from tensormeter.agent.agent import Agent

__all__ = ["ensure_agent", "reap_agents", "replace_agent"]

logger: Final = get_logger("tensormeter")

_THREADS_TIMEOUT: Final = 2.0
"""Maximum seconds to wait for the threads of an agent in this process."""

_INHERITED_LOCK: Final = 3
_children: set[int] = set()
_handed_over: set[int] = set()
"""Descriptors of locks that are being handed over to an agent. A child forked meanwhile closes them."""

_warned: list[object] = []
"""Invalid value of `sys.executable` for which a warning was logged."""

_thread_agents: "weakref.WeakSet[Agent]" = weakref.WeakSet()


def ensure_agent(directory: RunDirectory, settings: Settings) -> bool:
    """Start an agent for the run unless an agent holds the lock. Hold `runs_locked` while calling this.

    This process acquires the lock and hands it to the new process, so two agents never start at the same time. The
    agent runs in its own session, so Ctrl-C in the trainer's terminal does not reach it. It runs in a new interpreter
    and inherits none of the trainer's memory, threads or CUDA context. Starting it takes a few milliseconds, and this
    function does not wait for the agent.

    If the lock is held by a process that is not an agent, such as `tensormeter sync`, the agent is started without the
    lock and waits for it.

    The agent may also run on a thread of this process. On Python 3.12 or later, this function then waits up to two
    seconds until the agent's threads are running.

    Returns:
        Whether an agent was started.

    Raises:
        OSError, RuntimeError: The agent could not be started.
    """
    lock = directory.try_agent_lock()
    if lock is None and directory.is_held_by_agent():
        return False
    _start(directory, settings, lock, log=True)
    return True


def replace_agent(directory: RunDirectory, settings: Settings) -> bool:
    """Start an agent for a run whose agent seems to be gone, unless an agent holds the lock.

    Only the lock in shared memory is checked and handed over, so a hanging disk does not block this call. The agent
    acquires the lock in the run's directory, restores that directory if it was deleted, and opens its log. Without
    shared memory, this call blocks on the disk.

    Returns:
        Whether an agent was started.

    Raises:
        OSError, RuntimeError: The agent could not be started.
    """
    log = False
    try:
        lock = directory.try_memory_lock()
    except OSError:
        if not directory.path.exists():
            with runs_locked(directory.path.parents[1]):
                directory.restore()
        lock, log = directory.try_agent_lock(), True
    if lock is None:
        return False
    _start(directory, settings, lock, log=log)
    return True


def _start(directory: RunDirectory, settings: Settings, lock: int | None, *, log: bool) -> None:
    """Start an agent, and hand the lock over to it unless `lock` is None.

    If `log` is true, this process opens the agent's log.
    """
    if lock is not None:
        _handed_over.add(lock)
    try:
        if lock is not None:
            with contextlib.suppress(OSError):  # the lock is held even if the disk accepts no more data
                os.pwrite(lock, MARK, 0)
        if settings.agent == "thread" or not _can_start_python():
            _start_thread(directory, settings, lock)
        else:
            _children.add(_spawn(directory, settings, lock, log=log))
    finally:
        if lock is not None:
            _handed_over.discard(lock)
            os.close(lock)


def _can_start_python() -> bool:
    """Return whether `sys.executable` is Python. In embedded or frozen programs, it is empty or the program itself."""
    executable: object = sys.executable
    if isinstance(executable, str) and not getattr(sys, "frozen", False) and os.access(executable, os.X_OK):
        return True
    if not _warned:
        _warned.append(executable)
        logger.warning(
            "sys.executable is not a Python interpreter (%r); running the agent on a thread of this process", executable
        )
    return False


def reap_agents(adopted: int = 0) -> None:
    """Collect the exit statuses of ended agents, so that they do not remain zombies.

    Args:
        adopted: Process ID of an agent that this process did not start, or 0. It is checked only in the first process
            of a container, which adopts all orphaned processes.
    """
    if adopted and os.getpid() == 1:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(adopted, os.WNOHANG)
    for pid in list(_children):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended = pid
        if ended:
            _children.discard(pid)


def _spawn(directory: RunDirectory, settings: Settings, lock: int | None, *, log: bool) -> int:
    environment = dict(os.environ)
    environment.pop("TENSORMETER_TOKEN", None)
    if settings.token:
        environment["TENSORMETER_TOKEN"] = settings.token  # not as an argument, which everyone could see
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[variable] = "1"
    path = os.fspath(directory.path)
    description = _description(directory, settings)
    output = _output(directory.agent_log if log else None)
    try:
        return os.posix_spawn(
            sys.executable,
            # The path identifies the run for people who look at the process list.
            begin_command(path, "" if lock is None else str(_INHERITED_LOCK)),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, description, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
                *([] if lock is None else [(os.POSIX_SPAWN_DUP2, lock, _INHERITED_LOCK)]),
            ],
            setsid=True,
        )
    finally:
        os.close(description)
        os.close(output)


def _output(path: Path | None) -> int:
    """Return a descriptor for an agent's output: its log, or /dev/null if `path` is None or cannot be opened."""
    if path is not None:
        with contextlib.suppress(OSError):
            log = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                return fcntl.fcntl(log, fcntl.F_DUPFD_CLOEXEC, _INHERITED_LOCK + 1)
            finally:
                os.close(log)
    nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(nothing, fcntl.F_DUPFD_CLOEXEC, _INHERITED_LOCK + 1)
    finally:
        os.close(nothing)


def _description(directory: RunDirectory, settings: Settings) -> int:
    """Return a descriptor from which the agent reads the run and its settings, because `run.json` may be replaced."""
    document = json.dumps({"directory": directory.to_json(), "settings": settings.to_json()}).encode()
    with tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else open(os.memfd_create("run"), "w+b") as file:
        file.write(document)
        file.seek(0)
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _INHERITED_LOCK + 1)


def _start_thread(directory: RunDirectory, settings: Settings, lock: int | None) -> None:
    from tensormeter.agent.agent import Agent  # needs NumPy, SQLite and HTTP, so import it only for a thread

    agent = Agent(directory, settings, [] if lock is None else os.dup(lock))
    _thread_agents.add(agent)
    try:
        threading.Thread(target=agent.run, name="tensormeter-agent", daemon=True).start()
    except BaseException:  # RuntimeError: no thread can be started
        agent.close_lock()
        raise
    # No thread can be started after the script's last line, and this call may be on that line.
    if sys.version_info >= (3, 12) and lock is not None:
        agent.ready.wait(_THREADS_TIMEOUT)


def _after_fork() -> None:
    _children.clear()
    while _handed_over:
        os.close(_handed_over.pop())
    for agent in _thread_agents:
        agent.close_lock()
    _thread_agents.clear()


os.register_at_fork(after_in_child=_after_fork)
