"""What only the training process knows of itself: torch's allocator and Python's garbage collector, now and then."""

import time
from itertools import chain
from typing import Final

from tensormeter.logger import get_logger
from tensormeter.record.recorder import Recorder
from tensormeter.record.rows.stream_writer import StreamWriter
from tensormeter.record.runtime.gc_metrics import garbage
from tensormeter.record.runtime.torch_memory import torch_memory
from tensormeter.ring.layout import Stream

__all__ = ["RuntimeMetrics"]

logger: Final = get_logger()


class RuntimeMetrics:
    """Records them as rows without a step. Used by whichever thread logs; two at once record twice, and that is all."""

    def __init__(self, recorder: Recorder, interval: float) -> None:
        """
        Args:
            recorder: This process's.
            interval: Seconds between two samples, at least; 0 for none.
        """
        self._recorder = recorder
        self._interval = interval
        self._next = 0.0
        self._writers: dict[Stream, StreamWriter] = {}

    def beat(self) -> None:
        """Record a sample if it is time for one. Costs 50 ns if not, and some 100 microseconds if it is. Never raises."""
        if self._interval and time.monotonic() >= self._next:
            self.sample()

    def sample(self) -> None:
        """Record a sample now, unless there are to be none."""
        if not self._interval:
            return
        self._next = time.monotonic() + self._interval  # before a row is written: that may ask for another beat
        try:
            for stream, value in chain(torch_memory(), garbage()):
                if stream not in self._writers:
                    self._writers[stream] = StreamWriter(stream, lambda: self._recorder)
                self._writers[stream].record(value)
        except Exception as error:  # of a torch that does not have what this one has
            self._interval = 0.0
            logger.warning("torch's memory and Python's garbage are no longer sampled (%s)", error)
