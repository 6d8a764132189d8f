"""The lanes of a ring and the threads that they belong to.

The first lane is for the thread that makes the recorder and never changes hands, because its writers are given away; the
last is for all threads beyond the number of lanes, under a lock; the others are lent while a thread lives.
"""

import threading
from collections.abc import Callable, Iterator

from tensormeter.record.histogram.counting import DeviceTables
from tensormeter.record.rows.lane import Lane
from tensormeter.ring.file import RingFile

__all__ = ["Lanes"]


class Lanes:
    """The writing ends of a ring's lanes, in order.

    Attributes:
        first: The one of the thread that made this.
        shared: To be held while the last lane, which has no owner, is written.
    """

    def __init__(self, ring: RingFile, on_stride: Callable[[], None], tables: DeviceTables) -> None:
        """
        Args:
            ring: Created by this process.
            on_stride: As for `Lane`.
            tables: As for `Lane`.
        """
        last = len(ring.lanes) - 1
        owner = threading.get_ident()
        self._lanes = [
            Lane(ring, index, None if index == last else owner, on_stride, tables) for index in range(last + 1)
        ]
        self._free = self._lanes[last - 1 : 0 : -1]
        self._local = threading.local()
        self.first = self._lanes[0]
        self.shared = threading.RLock()  # re-entered by a signal handler that logs
        self._local.lease = _Lease(self.first, None)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def mine(self) -> Lane:
        """Return the lane of this thread."""
        try:
            lease: _Lease = self._local.lease
        except AttributeError:
            lease = self._local.lease = self._claim()
        return lease.lane

    def _claim(self) -> "_Lease":
        try:
            lane = self._free.pop()
        except IndexError:
            return _Lease(self._lanes[-1], None)
        lane.lend(threading.get_ident())
        return _Lease(lane, self._free)


class _Lease:
    """A thread's hold on a lane. It ends with the thread, whose `threading.local` is then cleared."""

    __slots__ = ("_free", "lane")

    def __init__(self, lane: Lane, free: list[Lane] | None) -> None:
        self.lane = lane
        self._free = free

    def __del__(self) -> None:
        if self._free is not None:
            self._free.append(self.lane)
