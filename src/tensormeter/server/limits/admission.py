"""A limit on the number of connections, and the eviction of connections that wait for their client."""

import ipaddress
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, Protocol

__all__ = ["Admission", "Admitted", "Waiting", "client_group"]

_MIN_SECONDS: Final = 5.0
"""Minimum seconds that a connection must have been in the state `BODY` or `READING` before it can be evicted.

A connection enters `READING` only after some seconds without progress (see `connections._UNREAD`).
"""


class Waiting(IntEnum):
    """Client action that a connection waits for. Connections with lower values are evicted first."""

    HEAD = 0
    """The client must send the rest of the headers, or the rest of a refused body."""

    IDLE = 1
    """The client may send another request."""

    BODY = 2
    """The client must send the rest of a body."""

    READING = 3
    """The client must read the response and has made no progress for some time."""


class Admitted(Protocol):
    """Interface through which `Admission` uses a connection."""

    def waits(self, waiting: Waiting) -> bool:
        """Return whether the connection is still waiting for this action."""
        ...

    def give_way(self) -> None:
        """Close the connection to make room for a new one."""
        ...


class _Group:
    """Waiting connections of one client address, by action, with the start time of each wait, oldest first."""

    def __init__(self) -> None:
        self.waiting: dict[Waiting, dict[Admitted, float]] = {waiting: {} for waiting in Waiting}

    def __len__(self) -> int:
        return sum(map(len, self.waiting.values()))

    def oldest(self, now: float) -> Iterator[Admitted]:
        for waiting, connections in self.waiting.items():
            for connection, since in connections.items():
                if waiting >= Waiting.BODY and now - since < _MIN_SECONDS:
                    break
                if connection.waits(waiting):
                    yield connection


class Admission:
    """Limit on the number of connections. At the limit, a new connection can evict one that waits for its client.

    The evicted connection is from the address with the most waiting connections, provided that this address has more of
    them than the new connection's address. Otherwise, it is from the new connection's own address. A client that opens
    many idle or slow connections can therefore evict only its own. For one event loop.
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
        """Admit a new connection, which waits for a request. At the limit, evict another connection.

        Return False if no connection can be evicted.
        """
        group = client_group(address)
        if len(self._open) >= self._most and not self._make_room(group, now):
            return False
        self._open[connection] = group
        self.note(connection, Waiting.HEAD, now)
        return True

    def note(self, connection: Admitted, waiting: Waiting | None, now: float) -> None:
        """Record the client action that a connection now waits for; None if it does not wait for its client."""
        if connection not in self._open or self._states.get(connection) is waiting:
            return
        self._forget(connection)
        if waiting is not None:
            group = self._groups.setdefault(self._open[connection], _Group())
            group.waiting[waiting][connection] = now
            self._states[connection] = waiting

    def discard(self, connection: Admitted) -> None:
        """Remove a connection from the count."""
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

    def _make_room(self, own_address: str, now: float) -> bool:
        waiting = {address: len(group) for address, group in self._groups.items()}
        for address in sorted(waiting, key=waiting.__getitem__, reverse=True):
            if address != own_address and waiting[address] <= waiting.get(own_address, 0):
                continue
            for connection in self._groups[address].oldest(now):
                self.discard(connection)
                connection.give_way()
                return True
        return False


def client_group(address: str) -> str:
    """Return an IPv4 address, or the /64 network of an IPv6 address, because one host can use the whole network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
