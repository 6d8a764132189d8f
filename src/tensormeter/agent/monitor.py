"""Monitoring of the agent by recording processes.

A recording thread only compares words in memory. If the agent's pulse has stopped or the agent has something to report,
the recording thread starts a temporary thread to handle it. Otherwise, the process has no extra thread and forks
safely. The temporary thread checks the lock in shared memory, and accesses the disk only if there is no shared memory.
"""

import threading
import time
from typing import Final

from tensormeter.agent.launch import reap_agents, replace_agent
from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.logger import get_logger
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import HeaderWord
from tensormeter.settings import Settings

__all__ = ["AgentMonitor"]

logger: Final = get_logger("tensormeter")

_INTERVAL: Final = 0.25
_LONGEST_INTERVAL: Final = 4.0
"""Maximum seconds between two checks while the pulse has stopped but a suspended or new agent holds the lock."""

_STOPPED: Final = 2.5
"""Seconds since the last beat after which the pulse counts as stopped. An agent writes one beat per second."""

_START: Final = 5.0
"""Seconds that an agent may take until its first beat."""

_LONG: Final = 5.0
"""An agent whose last beat came more than this many seconds after its start is replaced without delay."""

_WORKED: Final = 1.0
"""An agent whose last beat came more than this many seconds after its first beat is replaced without delay, too."""

_FIRST_DELAY: Final = 1.0
_LONGEST_DELAY: Final = 60.0


class AgentMonitor:
    """Monitor that replaces a run's agent when it is gone. Any thread or signal handler may call `check`."""

    def __init__(self, run_id: str, directory: RunDirectory, settings: Settings, ring: RingFile) -> None:
        """
        Args:
            run_id: ID of the run, for messages.
            directory: Directory of the run.
            settings: Settings for a new agent.
            ring: Ring of this process, whose header contains the pulse.
        """
        self._run_id = run_id
        self._directory = directory
        self._settings = settings
        self._ring = ring
        self._words = ring.words
        self._next = 0.0
        self._interval = _INTERVAL
        self._started = time.monotonic()
        self._started_here = False
        self._delay = 0.0
        self._first_pulse = 0.0
        self._pid = 0
        self._reported = 0
        self._warned: set[str] = set()
        self._busy = False

    def check(self) -> None:
        """Ensure that an agent is running, without waiting. If one is running, this only compares words in memory."""
        now = time.monotonic()
        if now < self._next or self._busy or self._settings.agent == "off":
            return
        self._next = now + self._interval
        words = self._words
        pulse = words[HeaderWord.PULSE] / 1e9
        stopped = now - pulse > _STOPPED and now - self._started > (_START if pulse < self._started else _STOPPED)
        if not stopped:
            self._interval = _INTERVAL
            if not self._first_pulse and pulse > self._started:
                self._first_pulse = pulse
            if not self._pid:
                self._pid = words[HeaderWord.AGENT_PID]
            if words[HeaderWord.AGENT_PID] == self._pid and words[HeaderWord.DISK_REPORTS] == self._reported:
                return
        self._busy = True
        try:
            threading.Thread(target=self._tend, args=(stopped,), name="tensormeter-tend", daemon=True).start()
        except RuntimeError:  # no thread can be started, perhaps because the interpreter is shutting down
            self._busy = False
            if threading.current_thread() is threading.main_thread() and not threading.main_thread().is_alive():
                self._tend(stopped)

    def report(self) -> None:
        """Warn about a replaced agent and about disk problems, once each. Call this on a thread that may block."""
        self._note_successor()
        number = self._words[HeaderWord.DISK_REPORTS]
        if number != self._reported:
            self._reported = number
            if text := self._ring.disk_report:
                logger.warning("run %s: %s", self._run_id, text)

    def _tend(self, stopped: bool) -> None:
        try:
            self.report()
            if stopped:
                self._start()
        except Exception:  # a thread of ours must not write a traceback to stderr
            logger.warning("run %s: cannot monitor its agent", self._run_id, exc_info=True)
        finally:
            self._busy = False

    def _note_successor(self) -> None:
        pid, before = self._words[HeaderWord.AGENT_PID], self._pid
        reap_agents(before)
        self._pid = pid
        if before and pid != before and not self._started_here:
            logger.warning("the agent of run %s had stopped; started a new one, which continues its work", self._run_id)
        if pid != before:
            self._started_here = False

    def _start(self) -> None:
        now, pulse = time.monotonic(), self._words[HeaderWord.PULSE] / 1e9
        if now < self._started + self._delay:
            return
        try:
            started = replace_agent(self._directory, self._settings)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            self._interval = min(2 * self._interval, _LONGEST_INTERVAL)
            if str(error) not in self._warned:
                self._warned.add(str(error))
                logger.warning(
                    "cannot start an agent for run %s (%s); deliver the run with `tensormeter sync`",
                    self._run_id,
                    error,
                )
            return
        if not started:
            self._interval = min(2 * self._interval, _LONGEST_INTERVAL)
            return
        # Delay the next start only if the last agent ended soon after its start.
        worked = pulse - self._started > _LONG or (self._first_pulse and pulse - self._first_pulse > _WORKED)
        self._delay = 0.0 if worked else min(max(2 * self._delay, _FIRST_DELAY), _LONGEST_DELAY)
        self._started = now
        self._first_pulse = 0.0
        self._started_here = True
        if self._words[HeaderWord.AGENT_PID]:
            logger.warning("the agent of run %s had stopped; started a new one, which continues its work", self._run_id)
        else:
            logger.warning("no agent was running for run %s; started a new one, which delivers its data", self._run_id)
