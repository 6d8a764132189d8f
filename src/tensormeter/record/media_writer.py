"""The writer of media items and texts, which log calls pass on to the agent as files next to the ring."""

import time
from collections.abc import Callable
from typing import Final

from tensormeter.conventions.limits import REPEATED_TEXT_CHARACTERS
from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.record.media.arrivals import Arrivals, Waiting
from tensormeter.record.media.arriving import ArrivingMedia
from tensormeter.record.media.item import EventContent, Media, refusal_of
from tensormeter.record.media.outbox import Outbox
from tensormeter.record.media.repeated_texts import RepeatedTexts
from tensormeter.record.rows.lane import Lane
from tensormeter.record.values.classify import Refused, check_name
from tensormeter.record.warn_once import WarnOnce, shown
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import Drop

__all__ = ["MediaWriter"]

_REMARK: Final = 24
"""Number of characters of a remark about a media item that distinguish it from other remarks. Each is written once per key."""


class MediaWriter:
    """Writes media items of one process. Never raises because of an item. Thread-safe.

    Attributes:
        on_text: Callback that receives the key and the text when a short string is written that differs from the last one of
            this key.
    """

    on_text: Callable[[str, str], None] | None

    def __init__(self, ring: RingFile, max_bytes: int, notices: WarnOnce) -> None:
        """
        Args:
            ring: Ring of this process.
            max_bytes: Maximum total size in bytes of the items that wait for the agent.
            notices: Warnings about items that cannot be recorded.
        """
        self._ring = ring
        self._notices = notices
        self.on_text = None
        self._outbox = Outbox(ring, max_bytes)
        self._arrivals = Arrivals()
        self._texts = RepeatedTexts()

    def write(self, lane: Lane, key: str, item: Media | str, step: int) -> bool:
        """Write an item, or count it as lost with a warning. An item that is still on a device waits for `poll`.

        Args:
            lane: Lane of the calling thread, which counts losses.
            key: Key under which the item was logged.
            item: The item. A string is plain text.
            step: Step of the row.

        Returns:
            Whether the item can be recorded.
        """
        self.poll(lane)
        if not isinstance(item, ArrivingMedia) or item.is_ready():
            return self._write(lane, key, item, step)
        if self._arrivals.add(Waiting(key, item, step, time.time_ns())):
            return True
        reason = "too many items wait for the device; log fewer at a time"
        self._refuse(lane, key, Refused(reason, Drop.MEDIA_FULL))
        return False

    @property
    def is_waiting(self) -> bool:
        """Whether items wait for their data."""
        return bool(self._arrivals)

    def poll(self, lane: Lane) -> None:
        """Write the items whose data has arrived from a device. Never waits."""
        self._arrivals.poll(lambda waiting: self._write(lane, *waiting))

    def write_event(
        self, lane: Lane, content: EventContent, key: str | None, step: int | None, at: int | None = None
    ) -> None:
        """Write the content of an event, or count it as lost with a warning. Its time is `at`, in nanoseconds, or now."""
        try:
            if self._outbox.put(content, key, step, at):
                if lost := self._ring.lost:  # dropped by the agent or a receiver, such as an image that is too large
                    self._notices.once(lost, "could not deliver an item: %s", lost)
                return
            reason = "the media buffer is full, or smaller than this item; log less at a time, or "
            reason += "raise TENSORMETER_MEDIA_BUFFER_BYTES"
        except OSError as error:
            reason = f"cannot write it next to the ring ({error.strerror})"
        lane.count(Drop.MEDIA_FULL)
        name = shown(key or content.event)
        self._notices.note(Drop.MEDIA_FULL, name)
        self._notices.once(Drop.MEDIA_FULL, "%s is not recorded: %s", name, reason)

    def flush(self, lane: Lane, timeout: float) -> None:
        """Write the last steps of texts that were logged repeatedly, and wait for items from a device, up to a timeout in seconds."""
        for key, step, content in self._texts.flush():
            self.write_event(lane, content, key, step)
        for waiting in self._arrivals.settle(lambda waiting: self._write(lane, *waiting), timeout):
            self._refuse(lane, waiting.key, Refused("its data did not arrive from the device", Drop.DEVICE_UNFINISHED))

    def _write(self, lane: Lane, key: str, item: Media | str, step: int, at: int | None = None) -> bool:
        try:
            check_name(key)
            name = as_unicode(key)
            contents = self._contents(name, item, step)
        except Exception as error:  # the item's values may run code that raises anything
            self._refuse(lane, key, refusal_of(error))
            return False
        if name != key:
            self._notices.changed_name(key, name)
        for first_step, content in contents:
            self.write_event(lane, content, name, first_step, at)
            if content.omitted:
                lane.count(Drop.UNSUPPORTED_VALUE, content.omitted)
                self._notices.note(Drop.UNSUPPORTED_VALUE, shown(name))
            for remark in content.remarks:
                self._notices.once((name, remark[:_REMARK]), "%s: %s", shown(name), remark)
        if self.on_text is not None and contents and isinstance(item, str) and len(item) <= REPEATED_TEXT_CHARACTERS:
            self.on_text(name, str.__str__(item))
        return True

    def _contents(self, name: str, item: Media | str, step: int) -> list[tuple[int, EventContent]]:
        """Return the events to write now, with their steps."""
        return [(step, item.pack())] if isinstance(item, Media) else self._texts.add(name, str.__str__(item), step)

    def _refuse(self, lane: Lane, key: str, refusal: Refused) -> None:
        lane.count(refusal.reason)
        self._notices.refused(key, refusal)
