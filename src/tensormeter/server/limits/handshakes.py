"""TLS handshakes that count as connections, so that incomplete handshakes can be evicted like incomplete requests."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

from tensormeter.server.limits.admission import Admission, Waiting

__all__ = ["Handshakes"]


class Handshakes:
    """Factory of protocols for new connections: first a handshake, then HTTP over TLS. For one event loop.

    asyncio's own handshakes would not let the server count a connection before its handshake is complete.
    """

    def __init__(
        self, context: ssl.SSLContext, admission: Admission, timeout: float, connected: Callable[..., asyncio.Protocol]
    ) -> None:
        """Create the factory.

        Args:
            context: TLS context with the certificate.
            admission: Limit on the number of connections.
            timeout: Maximum duration of a handshake in seconds.
            connected: Factory of the protocol to use after the handshake. It receives the same arguments as this
                factory.
        """
        self._context = context
        self._admission = admission
        self._timeout = timeout
        self._connected = connected
        self._pending: set[_Handshake] = set()

    def __call__(self, **options: Any) -> asyncio.Protocol:
        """Create the protocol for a new connection."""
        return _Handshake(self, lambda: self._connected(**options))

    def stop(self) -> None:
        """Close all connections with an incomplete handshake."""
        for handshake in [*self._pending]:
            handshake.give_way()

    def begin(self, handshake: "_Handshake", transport: asyncio.Transport, address: str) -> bool:
        """Count a connection. Return False if the limit is reached and no connection can be evicted."""
        now = asyncio.get_running_loop().time()
        if not self._admission.admit(handshake, address, now):
            return False
        self._pending.add(handshake)
        return True

    def end(self, handshake: "_Handshake") -> None:
        """Stop counting a connection that was lost, or that its next protocol will count."""
        self._admission.discard(handshake)
        self._pending.discard(handshake)

    async def shake(self, handshake: "_Handshake", transport: asyncio.Transport) -> asyncio.Transport | None:
        """Perform the handshake.

        Return the encrypted transport, or None if the handshake failed or timed out.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.start_tls(
                transport, handshake, self._context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError
            return None


class _Handshake(asyncio.Protocol):
    """Connection whose handshake is not complete yet."""

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
