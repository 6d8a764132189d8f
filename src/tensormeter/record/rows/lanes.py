"""Assignment of a ring's lanes to threads.

The first lane always belongs to the thread that creates the recorder, because the recorder passes the writers of this lane to
`on_writer`. All threads for which no separate lane is left share the last lane, under a lock. Each of the other lanes belongs
to one thread until this thread ends.
"""

import threading
from collections.abc import Callable, Iterator

from tensormeter.record.histogram.counting import DeviceTables
from tensormeter.record.rows.lane import Lane
from tensormeter.ring.file import RingFile

__all__ = ["Lanes"]


class Lanes:
    """The lanes of a ring, in order. Assigns a lane to each thread that writes.

    Attributes:
        first: Lane of the thread that constructed this object.
        shared: Lock to hold while writing to the last lane, which has no owner.
    """

    def __init__(self, ring: RingFile, on_stride: Callable[[], None], tables: DeviceTables) -> None:
        """
        Args:
            ring: Ring that this process has created.
            on_stride: Callback for slower checks (see `Lane`).
            tables: Object that counts distributions on devices (see `Lane`).
        """
        last = len(ring.lanes) - 1
        owner = threading.get_ident()
        self._lanes = [
            Lane(ring, index, None if index == last else owner, on_stride, tables) for index in range(last + 1)
        ]
        self._free = self._lanes[last - 1 : 0 : -1]
        self._local = threading.local()
        self.first = self._lanes[0]
        self.shared = threading.RLock()  # reentrant, because a signal handler may log
        self._local.lease = _Lease(self.first, None)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def mine(self) -> Lane:
        """Return the lane of the current thread. If the thread has no lane yet, assign one."""
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
    """The assignment of a lane to a thread. When the thread ends, Python clears its local data, which ends the assignment."""

    __slots__ = ("_free", "lane")

    def __init__(self, lane: Lane, free: list[Lane] | None) -> None:
        self.lane = lane
        self._free = free

    def __del__(self) -> None:
        if self._free is not None:
            self._free.append(self.lane)
