"""Writers for the measurements of instruments.

An instrument keeps a `StreamWriter` for each attribute set, and calls its `write_float` and `write_int` for ordinary numbers.
For the thread that created the recorder, these functions are writers of its lane. `record` handles all other values and
threads.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tensormeter.record.dynamo import break_graph
from tensormeter.record.values.classify import Refused
from tensormeter.ring.layout import Stream

if TYPE_CHECKING:
    from tensormeter.record.rows.lane import Writer

__all__ = ["MeasurementRecorder", "StreamWriter"]


class MeasurementRecorder(Protocol):
    """The interface of a recorder that a `StreamWriter` needs."""

    def record(self, stream: "StreamWriter", value: Any) -> int | None:
        """Record a value. Return the index of the ring word for a device value, or None for other values."""
        ...

    @property
    def words(self) -> memoryview:
        """Words of the ring that the recorder writes to."""
        ...


class StreamWriter:
    """Writes the measurements of one stream. Thread-safe, and hashed by identity.

    Attributes:
        stream: Stream of the measurements.
        name: Name of the stream.
        write_float: Function that writes a float: ``write_float({name: value}, 0)``. The float must be one that `check`
            accepts.
        write_int: Function that writes a 64-bit int in the same way.
    """

    __slots__ = ("_find", "_finite", "_minimum", "name", "stream", "write_float", "write_int")

    def __init__(
        self,
        stream: Stream,
        find: Callable[[], MeasurementRecorder | None],
        *,
        finite: bool = True,
        minimum: float = -math.inf,
    ) -> None:
        """
        Args:
            stream: Stream of the measurements.
            find: Function that returns this process's recorder, or None if measurements are not recorded.
            finite: Whether to refuse NaN and infinities.
            minimum: Smallest accepted value.
        """
        self.stream = stream
        self.name = stream.name
        self._find = find
        self._finite = finite
        self._minimum = minimum
        self.write_float: Writer = self.fall_back
        self.write_int: Writer = self.fall_back

    def record(self, value: Any) -> tuple[memoryview, int] | None:
        """Record any value. Never blocks, and never raises because of the value.

        Returns:
            For a device value, the words of the ring and the index of the word for this value. None for other values.
        """
        recorder = self._find()
        word = None if recorder is None else recorder.record(self, value)
        return None if recorder is None or word is None else (recorder.words, word)

    def check(self, number: float) -> None:
        """Check that the stream accepts a number.

        Raises:
            Refused: The number is below the minimum, or is NaN or infinite in a stream that requires finite numbers.
        """
        if self._finite and not math.isfinite(number):
            raise Refused(f"{number} cannot be aggregated; skip such values, or use a gauge, which records them")
        if number < self._minimum:
            raise Refused(f"{number} is less than {self._minimum:g}; use an up-down counter or a gauge")

    def use(self, code: str, writer: "Writer") -> None:
        """Use a writer for all further floats (code `d`) or ints (code `q`)."""
        if code == "d":
            self.write_float = writer
        else:
            self.write_int = writer

    def reset(self) -> None:
        """Discard the writers, so that the next measurement looks up the recorder again."""
        self.write_float = self.write_int = self.fall_back

    def fall_back(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        """Record a value of the stream. Writers call this method for unexpected arguments."""
        self.record(values[self.name])


break_graph(StreamWriter.record)
break_graph(StreamWriter.fall_back)
