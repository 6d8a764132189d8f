"""Periodic samples of torch's allocator and Python's garbage collector. Only the training process can read these statistics."""

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
    """Records samples of the runtime metrics as rows without a step.

    Any thread that logs may call the methods. If two threads call them at the same time, two samples may be recorded.
    """

    def __init__(self, recorder: Recorder, interval: float) -> None:
        """
        Args:
            recorder: Recorder of this process.
            interval: Minimum time in seconds between two samples. 0 disables sampling.
        """
        self._recorder = recorder
        self._interval = interval
        self._next = 0.0
        self._writers: dict[Stream, StreamWriter] = {}

    def beat(self) -> None:
        """Record a sample if one is due. Never raises. A sample takes about 100 microseconds; other calls take 50 ns."""
        if self._interval and time.monotonic() >= self._next:
            self.sample()

    def sample(self) -> None:
        """Record a sample now, unless the interval is 0."""
        if not self._interval:
            return
        self._next = time.monotonic() + self._interval  # set first, because writing a row may call `beat` again
        try:
            for stream, value in chain(torch_memory(), garbage()):
                if stream not in self._writers:
                    self._writers[stream] = StreamWriter(stream, lambda: self._recorder)
                self._writers[stream].record(value)
        except Exception as error:  # another version of torch may lack these statistics
            self._interval = 0.0
            logger.warning(
                "stopped the metrics of torch's allocator and Python's garbage collector: cannot read them (%s)", error
            )
