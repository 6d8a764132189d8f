"""Pauses between the rounds of the agent's loop.

A pause is short while a process waits for the agent or writes fast. Otherwise, the agent sleeps until rows are due. Every two
seconds, it looks for new rows and finished processes, which costs little. A process wakes the agent if a lane fills up
faster than expected, for a flush, and when it starts or ends. While the run has viewers, the agent looks for new rows
often, which only compares words in memory.
"""

import math
import time
from typing import Final

from tensormeter.agent.delivery.deliveries import Deliveries
from tensormeter.agent.ingest.ring_drainer import batch_delay
from tensormeter.agent.ingest.rings import Rings
from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.agent.wakeup import Wakeup
from tensormeter.settings import Settings

__all__ = ["Pauses"]

_TICK: Final = 0.05
"""Seconds of a short pause. A million rows per second fill a lane of 8 MiB in 140 ms."""

_LONGEST: Final = 2.0
"""Maximum seconds of a pause, and maximum seconds between two thorough rounds."""

_LATE: Final = 1 / 4
"""Share of the interval of heartbeats, samples and self-metrics by which they may be late."""

_LOOK: Final = 2.0
"""Maximum seconds between two looks for new rows, new media and ended processes."""

_LIVE_LOOK: Final = 0.025
"""Seconds between two looks for new rows while the run has viewers."""

_LONGEST_LIVE: Final = 0.25
"""Maximum seconds of a pause while the run has viewers. Images, tables and texts are noticed this late."""

_GROWTH: Final = 1 / 32
"""Share of a lane that a process may fill during a pause, at its current rate."""


class Pauses:
    """Pauses of the agent's main thread, which alone may use it, except for `wake` and `note_progress`."""

    def __init__(self, directory: RunDirectory, settings: Settings, rings: Rings) -> None:
        """
        Args:
            directory: Directory of the run.
            settings: Settings of the run.
            rings: Rings to watch.
        """
        self._directory = directory
        self._rings = rings
        intervals = settings.heartbeat_interval, settings.self_metrics_interval, settings.sample_interval
        self._longest = min([_LONGEST, *(_LATE * interval for interval in intervals if interval)])
        self._look = min(_LOOK, batch_delay(settings))
        self.thorough = True
        """Whether the next round must check everything, and not only the rings that are known."""
        self._thorough_at = 0.0
        self._was_woken = False
        self._wakeup = Wakeup()
        self._began = time.monotonic()
        self._is_awaited = False
        self._is_live = False
        self._keeps_up = True

    def wake(self) -> None:
        """End the current pause, or else the next one. Any thread or signal handler may call this."""
        self._wakeup.wake()

    def note_progress(self) -> None:
        """End the pause if something waits for delivery. Any thread may call this."""
        if self._is_awaited or (self._is_live and not self._keeps_up):
            self._wakeup.wake()

    def wait(self, seconds: float) -> None:
        """Pause for at most the given seconds."""
        self._wakeup.wait(seconds)

    def close(self) -> None:
        """Stop listening to processes."""
        self._wakeup.close()

    def set_awaited(self, awaited: bool) -> None:
        """Set whether a process waits for delivery."""
        self._is_awaited = awaited

    def follow_viewers(self, deliveries: Deliveries) -> None:
        """Let rows be sent soon if the run has viewers, and if all destinations keep up."""
        interval = deliveries.live_interval
        self._is_live, self._keeps_up = interval is not None, deliveries.keep_up
        self._rings.hurry(interval if interval is not None and self._keeps_up else math.inf)

    def rest(self, *, busy: bool) -> None:
        """Pause until the next round.

        Args:
            busy: Whether something waits for the agent, so that the pause must be short.
        """
        now = time.monotonic()
        elapsed, self._began = now - self._began, now
        growth = self._rings.take_growth()
        if self.thorough:
            self._thorough_at = now
        self.thorough = busy or not self._wakeup.listen(self._directory)
        if self.thorough:
            self._wakeup.wait(_TICK)
            return
        # A process that has woken the agent writes faster than its rate since the last pause, which was mostly idle.
        longest = _TICK if self._was_woken else self._longest
        most = min(longest, self._rings.due_in(), elapsed * _GROWTH / growth if growth else math.inf)
        seconds = max(_LIVE_LOOK, min(most, _LONGEST_LIVE)) if self._is_live else max(_TICK, most)
        self._rings.set_sleeping(seconds > _TICK)
        try:
            self._was_woken = self.thorough = self._sleep(seconds)
        finally:
            self._rings.set_sleeping(False)
        if time.monotonic() - self._thorough_at >= self._longest:
            self.thorough = True

    def _sleep(self, seconds: float) -> bool:
        """Pause until there is something to do, and return whether a thread or process has ended the pause."""
        deadline = time.monotonic() + seconds
        look = _LIVE_LOOK if self._is_live else max(_TICK, self._look)
        while (left := deadline - time.monotonic()) > 0:
            if self._wakeup.wait(min(left, look)):
                return True
            if self._is_live:
                if self._keeps_up and self._rings.has_due_rows():
                    break
            elif self._rings.has_news():
                break
        return False
