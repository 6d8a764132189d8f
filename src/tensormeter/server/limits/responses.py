"""Limits on the memory that unread responses use, per client and in total."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tensormeter.server.limits.admission import client_group
from tensormeter.server.limits.connections import PIECE
from tensormeter.server.limits.cpu_budget import MAX_SECONDS, CpuBudget, TookTooLongError
from tensormeter.server.query.points.sampled import WHOLE_POINTS
from tensormeter.server.store import MAX_READ_POINTS, TooManyPointsError, TooManySeriesError

__all__ = ["TOO_LONG", "BufferedResponse", "Pieces", "Reader", "ResponseLimiter", "client_of", "reader_of"]

SHARE: Final = 48 << 20
"""Limit on the number of unread bytes in a client's large responses.

While a client is at this limit, it gets no further large response. The client's small responses have a separate limit of
the same size.
"""

TOTAL: Final = 96 << 20
"""Limit on the number of unread bytes of all clients together. Large and small responses again have separate limits."""

SMALL_POINTS: Final = 100_000
"""Maximum number of points in a response that is produced without waiting for its turn.

A larger response uses six times its size in memory while it is produced. Larger responses are therefore produced one at
a time.
"""

_STALLED: Final = 3.0
"""Seconds without progress after which an unread response can be aborted to make room for another response."""

_LONG: Final = 60.0
"""Age, in seconds, at which a response can be aborted if another client waits for memory."""

_WAIT: Final = 30.0
"""Maximum seconds for which a large response waits for its turn."""

_POLL_INTERVAL: Final = 0.5

TOO_LONG: Final = (
    f"the request needs more than {MAX_SECONDS:g} s of CPU time; request fewer metrics, a single process with "
    "`process`, or a smaller range with `start` and `stop`"
)
"""Message for a read that needs too much processor time."""

_BUSY: Final = "too many large responses are waiting to be read; read the pending ones, or retry later"


class Reader(Protocol):
    """Connection to a client that reads a response."""

    @property
    def stalled(self) -> float:
        """Seconds since the client last read any of its pending data; 0 if no data is pending."""
        ...

    @property
    def closing(self) -> bool:
        """Whether the connection is closing, so that no more data can be sent."""
        ...

    def abort(self) -> None:
        """Close the connection immediately."""
        ...


class BufferedResponse(StreamingResponse):
    """Response that is produced in pieces as the client reads it, from data that stays in memory until it is sent.

    Attributes:
        buffered_bytes: Size of the data in memory, in bytes.
        is_large: Whether the response had to wait for its turn; see `ResponseLimiter`.
    """

    def __init__(
        self, pieces: Generator[bytes, None, None] | list[bytes], buffered_bytes: int, media_type: str
    ) -> None:
        """Create the response.

        Args:
            pieces: Pieces of the body: a list, which is emptied at the end, or a generator, which runs on worker
                threads.
            buffered_bytes: Size, in bytes, of the data that stays in memory until the response is sent.
            media_type: Content type of the response.
        """
        if isinstance(pieces, list):
            headers = {"Content-Length": str(sum(map(len, pieces)))}
            super().__init__(_one_after_another(pieces), headers=headers, media_type=media_type)
        else:
            pieces = _batched(pieces)
            super().__init__(pieces, media_type=media_type)
        self.buffered_bytes = buffered_bytes
        self.is_large = False
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Free the memory now. Otherwise, a client that disconnects leaves reference cycles for the garbage
            # collector.
            if isinstance(self._pieces, list):
                self._pieces.clear()
            else:
                self._pieces.close()


def _batched(pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """Join small pieces, because each step of the generator on a worker thread takes about 0.1 ms."""
    waiting: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= PIECE:
                yield b"".join(waiting)
                waiting, size = [], 0
        if waiting:
            yield b"".join(waiting)
    finally:
        pieces.close()


async def _one_after_another(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@dataclass(eq=False)
class _Unread:
    client: str
    size: int
    reader: Reader | None
    since: float = field(default_factory=time.monotonic)


class _Account:
    """Unread responses of one kind (large or small), and their total size per client in bytes."""

    def __init__(self) -> None:
        self._unread: set[_Unread] = set()
        self._bytes: defaultdict[str, int] = defaultdict(int)

    def add(self, unread: _Unread) -> None:
        self._unread.add(unread)
        self._bytes[unread.client] += unread.size

    def remove(self, unread: _Unread) -> None:
        self._unread.remove(unread)
        self._bytes[unread.client] -= unread.size
        if not self._bytes[unread.client]:
            del self._bytes[unread.client]

    def of(self, client: str) -> int:
        """Return the client's number of unread bytes."""
        return self._bytes.get(client, 0)

    def has_room(self, client: str) -> bool:
        """Return whether the client may get another response."""
        return self.of(client) < SHARE and sum(self._bytes.values()) < TOTAL

    def cut_off(self, client: str) -> None:
        """Abort a response, if possible, to free memory.

        The candidates are the responses of `client` if it has used up its share, otherwise those of the client with the
        most unread bytes. The method selects the response that has stalled longest, or the oldest response if none has
        stalled. It aborts this response after a stall of `_STALLED` seconds or, unless `client` has used up its share,
        at an age of `_LONG` seconds.
        """
        is_own = self.of(client) >= SHARE
        owner = client if is_own else max(self._bytes, key=self.of, default=client)
        now = time.monotonic()
        candidates = [
            (unread.reader.stalled, now - unread.since, unread.reader)
            for unread in self._unread
            if unread.client == owner and unread.reader is not None and not unread.reader.closing
        ]
        stalled, age, reader = max(candidates, key=lambda candidate: candidate[:2], default=(0.0, 0.0, None))
        if reader is not None and (stalled >= _STALLED or (age >= _LONG and not is_own)):
            reader.abort()


@dataclass(eq=False)
class _Waiter:
    """A request that waits for its turn."""

    client: str
    account: _Account


class ResponseLimiter:
    """Limiter that counts the bytes of unsent responses, and produces large responses one at a time.

    For one event loop. Large and small responses are counted separately, so that a client can load charts during large
    downloads.
    """

    def __init__(self) -> None:
        self._large, self._small = _Account(), _Account()
        self._waiting: list[_Waiter] = []
        self._busy = False
        self._changed = asyncio.Event()

    def bounded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response | ASGIApp]]:
        """Wrap a handler, so that its responses are counted. Clients with too much unread data get status 503."""

        async def handle(request: Request) -> Response | ASGIApp:
            response = await handler(request)
            client, account = client_of(request), self._small
            if isinstance(response, BufferedResponse):  # `points` has already checked for room
                size, account = response.buffered_bytes, self._large if response.is_large else self._small
            else:
                size = len(getattr(response, "body", b""))
                if size > PIECE and not account.has_room(client):
                    account.cut_off(client)
                    raise HTTPException(503, _BUSY, {"Retry-After": "5"})
            if size <= PIECE:
                return response
            return self._counted(response, account, _Unread(client, size, reader_of(request)))

        return handle

    async def points(
        self,
        request: Request,
        run: Callable[[Request, Callable[[CpuBudget], BufferedResponse], CpuBudget], Awaitable[BufferedResponse]],
        work: Callable[[int, CpuBudget], BufferedResponse],
        most: int = MAX_READ_POINTS,
        *,
        sampled: bool = False,
    ) -> BufferedResponse:
        """Produce a response with points. If many points must be read, first wait for a turn and for free memory.

        Args:
            request: Request of the client.
            run: Function that runs its argument on a worker thread and stops it when the request ends.
            work: Function that produces the response from at most the given number of points, or raises
                TooManyPointsError. All calls check the same budget.
            most: Maximum number of points.
            sampled: Whether the response is sampled, so that it is small even if many points are read.

        Raises:
            HTTPException: 503 if too many large responses are waiting to be read.
            TooManyPointsError: More than `most` points match, or reading the points takes too much processor time.
        """
        try:
            return await self._produce(request, run, work, most, sampled=sampled)
        except TookTooLongError:
            raise TooManyPointsError(TOO_LONG) from None

    async def _produce(
        self,
        request: Request,
        run: Callable[[Request, Callable[[CpuBudget], BufferedResponse], CpuBudget], Awaitable[BufferedResponse]],
        work: Callable[[int, CpuBudget], BufferedResponse],
        most: int,
        *,
        sampled: bool,
    ) -> BufferedResponse:
        budget = CpuBudget()
        few = min(most, WHOLE_POINTS if sampled else SMALL_POINTS)
        response: BufferedResponse | None
        try:
            response = await run(request, lambda budget: work(few, budget), budget)
            if response.buffered_bytes <= PIECE or self._small.has_room(client_of(request)):
                return response
        except TooManyPointsError as error:
            if few == most or isinstance(error, TooManySeriesError):
                raise
        response = None  # free its memory before it is produced again
        async with self._turn(request, self._small if sampled else self._large):
            response = await run(request, lambda budget: work(most, budget), budget)
            response.is_large = not sampled
            return response

    @asynccontextmanager
    async def _turn(self, request: Request, account: _Account) -> AsyncIterator[None]:
        """Wait until there is free memory and no other large response is being produced.

        Clients with the least unread data go first.
        """
        waiter = _Waiter(client_of(request), account)
        reader = reader_of(request)
        self._waiting.append(waiter)
        try:
            with anyio.fail_after(_WAIT):
                while self._busy or self._next() is not waiter:
                    if reader is not None and reader.closing:
                        raise ClientDisconnect
                    if not account.has_room(waiter.client):
                        account.cut_off(waiter.client)
                    with anyio.move_on_after(_POLL_INTERVAL):
                        await self._changed.wait()
            self._busy = True
        except TimeoutError:
            raise HTTPException(503, _BUSY, {"Retry-After": "5"}) from None
        finally:
            self._waiting.remove(waiter)
        try:
            yield
        finally:
            self._busy = False
            self._notify()

    def _next(self) -> _Waiter | None:
        ready = (waiter for waiter in self._waiting if waiter.account.has_room(waiter.client))
        return min(ready, key=lambda waiter: waiter.account.of(waiter.client), default=None)

    def _counted(self, response: Response, account: _Account, unread: _Unread) -> ASGIApp:
        async def send_counted(scope: Scope, receive: Receive, send: Send) -> None:
            account.add(unread)
            try:
                await response(scope, receive, send)
            finally:
                account.remove(unread)
                self._notify()

        return send_counted

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Pieces:
    """ASGI middleware that sends large bodies in pieces, so that a connection's buffer never holds a whole body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request."""

        async def send_pieces(message: Message) -> None:
            body = message.get("body", b"") if message["type"] == "http.response.body" else b""
            if len(body) <= PIECE:
                await send(message)
                return
            for piece, is_last in _cut(body):
                more = not is_last or message.get("more_body", False)
                await send({"type": "http.response.body", "body": piece, "more_body": more})

        await self._app(scope, receive, send_pieces)


def _cut(body: bytes) -> Iterator[tuple[bytes, bool]]:
    for at in range(0, len(body), PIECE):
        yield bytes(body[at : at + PIECE]), at + PIECE >= len(body)


def client_of(request: Request) -> str:
    """Return an identifier of the client, which consists of its token's name and its address."""
    address = client_group(request.client.host) if request.client is not None else ""
    return f"{request.state.access.who}\n{address}"


def reader_of(request: Request) -> Reader | None:
    """Return the request's connection, or None in tests that run without a server."""
    reader: Reader | None = getattr(request.state, "connection", None)
    return reader
