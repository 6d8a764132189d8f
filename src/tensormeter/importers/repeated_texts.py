"""Short texts that are logged again and again, which become two records instead of one for each step."""

from dataclasses import dataclass
from typing import Final

from tensormeter.conventions.limits import REPEATED_TEXT_CHARACTERS
from tensormeter.importers.run_requests import RunRequests

__all__ = ["RepeatedTexts"]

_MOST_KEYS: Final = 10_000


@dataclass
class _Repeat:
    text: str
    first_step: int | None
    step: int | None
    time: int
    count: int = 1


class RepeatedTexts:
    """Texts of one run. A text that is equal to the key's previous one is counted, as an agent does. Not thread-safe."""

    def __init__(self, requests: RunRequests) -> None:
        self._requests = requests
        self._repeats: dict[str, _Repeat] = {}

    def add(self, key: str, step: int | None, time: int, text: str) -> None:
        """Add a text. `time` is in nanoseconds since the Unix epoch."""
        repeat = self._repeats.get(key)
        if repeat is not None and repeat.text == text:
            repeat.step, repeat.time, repeat.count = step, time, repeat.count + 1
            return
        self._end(key)
        if len(text) <= REPEATED_TEXT_CHARACTERS and step is not None and len(self._repeats) < _MOST_KEYS:
            self._repeats[key] = _Repeat(text, step, step, time)
        self._requests.item("text", key, step, time, text=text)

    def flush(self) -> None:
        """Send the counts of repeated texts."""
        for key in list(self._repeats):
            self._end(key)

    def _end(self, key: str) -> None:
        repeat = self._repeats.pop(key, None)
        if repeat is not None and repeat.count > 1:
            self._requests.item(
                "text",
                key,
                repeat.step,
                repeat.time,
                text=repeat.text,
                first_step=repeat.first_step,
                count=repeat.count,
            )
