"""TLS handshakes that count as connections: one that does not go on gives way, as half of a request does."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

from tensormeter.server.limits.admission import Admission, Waiting

__all__ = ["Handshakes"]


class Handshakes:
    """Makes the protocol of each new connection: a handshake, and then what speaks over it. For one event loop.

    asyncio's own servers tell nobody of a connection before its handshake is over, so nobody could count them.
    """

    def __init__(
        self, context: ssl.SSLContext, admission: Admission, timeout: float, connected: Callable[..., asyncio.Protocol]
    ) -> None:
        """Prepare.

        Args:
            context: With the certificate.
            admission: Counts connections.
            timeout: Seconds that a handshake may take.
            connected: Makes the protocol that speaks over it, from what the server gives to protocols.
        """
        self._context = context
        self._admission = admission
        self._timeout = timeout
        self._connected = connected
        self._going_on: set[_Handshake] = set()

    def __call__(self, **of_server: Any) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Handshake(self, lambda: self._connected(**of_server))

    def stop(self) -> None:
        """Close connections whose handshakes go on."""
        for handshake in [*self._going_on]:
            handshake.give_way()

    def begin(self, handshake: "_Handshake", transport: asyncio.Transport, address: str) -> bool:
        """Count a connection; False: there is no place for it."""
        now = asyncio.get_running_loop().time()
        if not self._admission.admit(handshake, address, now):
            return False
        self._going_on.add(handshake)
        return True

    def end(self, handshake: "_Handshake") -> None:
        """Count it no more: it is lost, or its protocol counts from now on."""
        self._admission.discard(handshake)
        self._going_on.discard(handshake)

    async def shake(self, handshake: "_Handshake", transport: asyncio.Transport) -> asyncio.Transport | None:
        """The encrypted transport; None if the client speaks no TLS, or did not go on."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.start_tls(
                transport, handshake, self._context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError
            return None


class _Handshake(asyncio.Protocol):
    """One connection until its handshake is over."""

    def __init__(self, handshakes: Handshakes, connected: Callable[[], asyncio.Protocol]) -> None:
        self._handshakes = handshakes
        self._make_protocol = connected
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if self._handshakes.begin(self, transport, str(peer[0]) if peer else ""):
            self._task = asyncio.get_running_loop().create_task(self._shake())
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._handshakes.end(self)

    def waits(self, waiting: Waiting) -> bool:
        """See `Admitted`."""
        return True

    def give_way(self) -> None:
        """See `Admitted`."""
        self._transport.abort()

    async def _shake(self) -> None:
        try:
            encrypted = await self._handshakes.shake(self, self._transport)
        finally:
            self._handshakes.end(self)
        if encrypted is None:
            with contextlib.suppress(OSError):
                self._transport.abort()
            return
        protocol = self._make_protocol()
        encrypted.set_protocol(protocol)
        protocol.connection_made(encrypted)
        for data in self._early:
            protocol.data_received(data)
