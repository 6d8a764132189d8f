"""Sockets that have something to read."""

import select
import socket
from collections.abc import Collection


def readable(connections: Collection[socket.socket], seconds: float = 0) -> list[socket.socket]:
    """Return the connections that have something to read, or have ended, and wait for the first one.

    Unlike `select.select`, this accepts descriptors from 1024 on, which a worker with many tests has.

    Args:
        connections: Connections to look at.
        seconds: Maximum time to wait.
    """
    poll = select.poll()
    by_descriptor = {connection.fileno(): connection for connection in connections}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(seconds * 1000)]
