"""Answers that wait to be read: bounded in memory, for all clients together and for each."""

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
from tensormeter.server.limits.effort import MAX_SECONDS, Effort, TookTooLongError
from tensormeter.server.query.points.sampled import WHOLE_POINTS
from tensormeter.server.store import MAX_READ_POINTS, TooManyPointsError, TooManySeriesError

__all__ = ["TOO_LONG", "Answers", "HeldResponse", "Pieces", "Reader", "client_of", "reader_of"]

SHARE: Final = 48 << 20
"""Bytes of large answers that one client leaves unread: while there are more, no further one is made for it. So for small ones."""

TOTAL: Final = 96 << 20
"""The same of all clients."""

SMALL_POINTS: Final = 100_000
"""Points of an answer that is made at any time. Larger ones are made one at a time: each takes six times its size meanwhile."""

_STALLED: Final = 3.0
"""Seconds without progress after which an unread answer gives way to another one."""

_LONG: Final = 60.0
"""Seconds that an answer may take to be read, where other clients wait for the room that it takes."""

_WAIT: Final = 30.0
"""Seconds for which a large answer waits until it can be made."""

_LOOK: Final = 0.5

TOO_LONG: Final = (
    f"this takes more than {MAX_SECONDS:g} s of processor time; ask for fewer metrics, for one process with `process`, "
    "or for a smaller range with `start` and `stop`"
)
"""What to ask instead of a read that takes too long."""

_BUSY: Final = "too many large answers wait to be read; read those that you have asked for, or ask again later"


class Reader(Protocol):
    """The connection of a client that is to read an answer."""

    @property
    def stalled(self) -> float:
        """Seconds for which nothing has been read although something waits."""
        ...

    @property
    def closing(self) -> bool:
        """Whether nothing more can be sent."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class HeldResponse(StreamingResponse):
    """An answer that is made piece by piece as it is read, of something that is in memory until then.

    Attributes:
        held: Bytes in memory.
        is_large: Whether it was made in turn; see `Answers`.
    """

    def __init__(self, pieces: Generator[bytes, None, None] | list[bytes], held: int, media_type: str) -> None:
        """Create the answer.

        Args:
            pieces: Its body. A list is there already, and is emptied in the end; a generator is drawn on worker threads.
            held: Bytes in memory until it is sent.
            media_type: Content type.
        """
        if isinstance(pieces, list):
            headers = {"Content-Length": str(sum(map(len, pieces)))}
            super().__init__(_one_after_another(pieces), headers=headers, media_type=media_type)
        else:
            pieces = _gathered(pieces)
            super().__init__(pieces, media_type=media_type)
        self.held = held
        self.is_large = False
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Now, and not when the garbage collector comes by: a client that goes away leaves cycles of references.
            if isinstance(self._pieces, list):
                self._pieces.clear()
            else:
                self._pieces.close()


def _gathered(pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """The pieces, small ones together: drawing one on a worker thread costs about 0.1 ms."""
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
    """Unread answers of one kind: their bytes, for each client."""

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
        """Bytes that a client has not read."""
        return self._bytes.get(client, 0)

    def has_room(self, client: str) -> bool:
        """Whether another answer may be made for a client."""
        return self.of(client) < SHARE and sum(self._bytes.values()) < TOTAL

    def cut_off(self, client: str) -> None:
        """Give up an answer, so that there will be room for a client: one of its own if it has its share, else of the one with the most.

        The one that has stalled for the longest; or, for the sake of another client, the oldest of those that take very long.
        """
        is_its_own = self.of(client) >= SHARE
        whose = client if is_its_own else max(self._bytes, key=self.of, default=client)
        now = time.monotonic()
        candidates = [
            (one.reader.stalled, now - one.since, one.reader)
            for one in self._unread
            if one.client == whose and one.reader is not None and not one.reader.closing
        ]
        stalled, age, reader = max(candidates, key=lambda one: one[:2], default=(0.0, 0.0, None))
        if reader is not None and (stalled >= _STALLED or (age >= _LONG and not is_its_own)):
            reader.abort()


@dataclass(eq=False)
class _Waiter:
    """A request that waits for its turn."""

    client: str
    account: _Account


class Answers:
    """Counts the bytes of answers until they are sent, and makes large ones in turn. For one event loop.

    Large ones have an account of their own: somebody who downloads everything goes on looking at charts meanwhile.
    """

    def __init__(self) -> None:
        self._large, self._small = _Account(), _Account()
        self._waiting: list[_Waiter] = []
        self._busy = False
        self._changed = asyncio.Event()

    def bounded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response | ASGIApp]]:
        """A handler whose answers count; 503 if the client leaves too much unread."""

        async def handle(request: Request) -> Response | ASGIApp:
            response = await handler(request)
            client, account = client_of(request), self._small
            if isinstance(response, HeldResponse):  # it has looked for room before
                size, account = response.held, self._large if response.is_large else self._small
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
        run: Callable[[Request, Callable[[Effort], HeldResponse], Effort], Awaitable[HeldResponse]],
        work: Callable[[int, Effort], HeldResponse],
        most: int = MAX_READ_POINTS,
        *,
        sampled: bool = False,
    ) -> HeldResponse:
        """An answer of points: at once if few are read for it, else in turn, when there is room for it.

        Args:
            request: From the client.
            run: Calls what it is given on a worker thread, and ends it with the request.
            work: Makes the answer from at most so many points, or raises TooManyPointsError; checks the effort, which is one for all calls.
            most: Points, at most.
            sampled: Whether the answer is small, however many points are read for it.

        Raises:
            HTTPException: 503, too many large answers wait to be read.
            TooManyPointsError: There are more than `most`, or reading them takes too much processor time.
        """
        try:
            return await self._made(request, run, work, most, sampled=sampled)
        except TookTooLongError:
            raise TooManyPointsError(TOO_LONG) from None

    async def _made(
        self,
        request: Request,
        run: Callable[[Request, Callable[[Effort], HeldResponse], Effort], Awaitable[HeldResponse]],
        work: Callable[[int, Effort], HeldResponse],
        most: int,
        *,
        sampled: bool,
    ) -> HeldResponse:
        effort = Effort()
        few = min(most, WHOLE_POINTS if sampled else SMALL_POINTS)
        response: HeldResponse | None
        try:
            response = await run(request, lambda effort: work(few, effort), effort)
            if response.held <= PIECE or self._small.has_room(client_of(request)):
                return response
        except TooManyPointsError as error:
            if few == most or isinstance(error, TooManySeriesError):
                raise
        response = None  # it is made again
        async with self._turn(request, self._small if sampled else self._large):
            response = await run(request, lambda effort: work(most, effort), effort)
            response.is_large = not sampled
            return response

    @asynccontextmanager
    async def _turn(self, request: Request, account: _Account) -> AsyncIterator[None]:
        """Wait until no other large answer is being made, and there is room; those with the least unread go first."""
        mine = _Waiter(client_of(request), account)
        reader = reader_of(request)
        self._waiting.append(mine)
        try:
            with anyio.fail_after(_WAIT):
                while self._busy or self._next() is not mine:
                    if reader is not None and reader.closing:
                        raise ClientDisconnect
                    if not account.has_room(mine.client):
                        account.cut_off(mine.client)
                    with anyio.move_on_after(_LOOK):
                        await self._changed.wait()
            self._busy = True
        except TimeoutError:
            raise HTTPException(503, _BUSY, {"Retry-After": "5"}) from None
        finally:
            self._waiting.remove(mine)
        try:
            yield
        finally:
            self._busy = False
            self._notify()

    def _next(self) -> _Waiter | None:
        able = (one for one in self._waiting if one.account.has_room(one.client))
        return min(able, key=lambda one: one.account.of(one.client), default=None)

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
    """ASGI middleware that sends large bodies piece by piece, so that what is not read is not copied into a connection's buffer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

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
    """Names a client: its token, and where it is."""
    address = client_group(request.client.host) if request.client is not None else ""
    return f"{request.state.access.who}\n{address}"


def reader_of(request: Request) -> Reader | None:
    """The request's connection; None in tests without a server."""
    reader: Reader | None = getattr(request.state, "connection", None)
    return reader
