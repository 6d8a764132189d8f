"""Which connections are open, and which of them gives way when there are as many as may be."""

import ipaddress
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, Protocol

__all__ = ["Admission", "Admitted", "Waiting", "client_group"]

_PATIENCE: Final = 5.0
"""Seconds that a body, or the reading of an answer, may take before it can be cut off for somebody else."""


class Waiting(IntEnum):
    """What a connection waits for its client to do. The lower the number, the sooner it gives way."""

    HEAD = 0
    """Send the rest of a request's headers, or the rest of a body that was refused."""

    IDLE = 1
    """Send a further request."""

    BODY = 2
    """Send the rest of a body."""

    READING = 3
    """Read the answer: nothing of it has been read for some time."""


class Admitted(Protocol):
    """A connection, as `Admission` sees it."""

    def waits(self, waiting: Waiting) -> bool:
        """Whether it still waits for this."""
        ...

    def give_way(self) -> None:
        """Close: another connection takes the place."""
        ...


class _Group:
    """The connections of one address that wait for their client: by what for, and then by since when, the oldest first."""

    def __init__(self) -> None:
        self.waiting: dict[Waiting, dict[Admitted, float]] = {waiting: {} for waiting in Waiting}

    def __len__(self) -> int:
        return sum(map(len, self.waiting.values()))

    def oldest(self, now: float) -> Iterator[Admitted]:
        for waiting, connections in self.waiting.items():
            for connection, since in connections.items():
                if waiting >= Waiting.BODY and now - since < _PATIENCE:
                    break
                if connection.waits(waiting):
                    yield connection


class Admission:
    """Counts connections up to a limit. Beyond it the address with the most connections that wait for their client loses one.

    So a client that opens connections and does nothing with them, or does it slowly, only takes places from itself: a new
    connection never takes the place of an address that has no more of them than its own. For one event loop.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[Admitted, str] = {}
        self._groups: dict[str, _Group] = {}
        self._states: dict[Admitted, Waiting] = {}

    def __iter__(self) -> Iterator[Admitted]:
        return iter([*self._open])

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Admitted, address: str, now: float) -> bool:
        """Count a new connection, which waits for a request; another one may have to give way. False: there is no place."""
        own = client_group(address)
        if len(self._open) >= self._most and not self._make_room(own, now):
            return False
        self._open[connection] = own
        self.note(connection, Waiting.HEAD, now)
        return True

    def note(self, connection: Admitted, waiting: Waiting | None, now: float) -> None:
        """Note what a connection waits for from now on; None: it does not wait for its client."""
        if connection not in self._open or self._states.get(connection) is waiting:
            return
        self._forget(connection)
        if waiting is not None:
            group = self._groups.setdefault(self._open[connection], _Group())
            group.waiting[waiting][connection] = now
            self._states[connection] = waiting

    def discard(self, connection: Admitted) -> None:
        """Count a connection no more."""
        if connection in self._open:
            self._forget(connection)
            del self._open[connection]

    def _forget(self, connection: Admitted) -> None:
        waiting = self._states.pop(connection, None)
        if waiting is not None:
            address = self._open[connection]
            group = self._groups[address]
            del group.waiting[waiting][connection]
            if not len(group):
                del self._groups[address]

    def _make_room(self, own: str, now: float) -> bool:
        waiting = {address: len(group) for address, group in self._groups.items()}
        for address in sorted(waiting, key=waiting.__getitem__, reverse=True):
            if address != own and waiting[address] <= waiting.get(own, 0):
                continue
            for connection in self._groups[address].oldest(now):
                self.discard(connection)
                connection.give_way()
                return True
        return False


def client_group(address: str) -> str:
    """The address, or, for IPv6, its network of 64 bits: a host can have any number of addresses in it."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
