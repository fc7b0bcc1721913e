"""Requests to an engine, whose answers are passed on in the turn of the event loop that brought them.

aiohttp's client wakes a task for every piece of a stream: with it a token took twice the gateway's processor time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import cast

import httptools

from server.engine import EnginePlan

CONNECT_TIMEOUT_S = 5.0
MOST_HELD = 16  # pieces that nobody has asked for yet
MOST_RESTING = 8  # connections between two requests; each keeps a thread of llama.cpp, which closes it after 5 s
_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)


class NoAnswer(Exception):
    """The engine was not reached, or closed the connection before it had answered anything: it may be asked again."""


class BrokenOff(Exception):
    """The engine closed the connection within its answer."""

    def __str__(self) -> str:
        return "it broke off"


class Reply:
    """An engine's answer as it comes; what has come is kept until `read` or `pour` asks for it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.status = 0
        self.leaves_open = False  # it is whole, and the engine takes another request on the same connection
        self.content_type = ""
        self._parser = httptools.HttpResponseParser(self)
        self._answers = asyncio.Event()  # the head is there, or never comes
        self._pieces: list[bytes] = []
        self._keep: Callable[[bytes], None] = self._hold
        self._is_whole, self._is_lost = False, False
        self._halted = asyncio.Event()  # nothing more comes: the end, or `pause`
        self._transport = transport

    async def begins(self) -> bool:
        """Whether `status` and `content_type` came; False where the connection was closed before."""
        await self._answers.wait()
        return bool(self.status)

    async def read(self, most: int | None = None) -> bytes:
        """The body, or what came of one that is longer than `most` bytes. Raises BrokenOff."""
        size = sum(map(len, self._pieces))

        def keep(piece: bytes) -> None:
            nonlocal size
            self._pieces.append(piece)
            size += len(piece)
            if most is not None and size > most:
                self.pause()

        self._keep = keep
        self.resume()
        await self.halted()
        return b"".join(self._pieces)

    def pour(self, sink: Callable[[bytes], None]) -> None:
        """Hand every piece of the body to `sink`, from the beginning."""
        self._keep, held = sink, self._pieces
        self._pieces = []
        self.resume()
        for piece in held:
            sink(piece)

    def pause(self) -> None:
        """Read nothing more until `resume`. What was read already is still handed on."""
        if self._is_coming:
            self._transport.pause_reading()
            self._halted.set()

    def resume(self) -> None:
        """Read on."""
        if self._is_coming:
            self._halted.clear()
            self._transport.resume_reading()

    async def halted(self) -> bool:
        """Until the answer is whole, which is True, or paused. Raises BrokenOff."""
        await self._halted.wait()
        if self._is_lost:
            raise BrokenOff
        return self._is_whole

    @property
    def _is_coming(self) -> bool:
        return not (self._is_whole or self._is_lost or self._transport.is_closing())

    def _hold(self, piece: bytes) -> None:
        self._pieces.append(piece)
        if len(self._pieces) == MOST_HELD:
            self.pause()

    def feed(self, data: bytes) -> None:
        """What the connection brought."""
        self._parser.feed_data(data)

    def lost(self) -> None:
        """The connection is closed."""
        self._is_lost = not self._is_whole
        self._answers.set()
        self._halted.set()

    # of httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value.decode("latin-1").partition(";")[0].strip().lower()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._answers.set()

    def on_body(self, piece: bytes) -> None:
        self._keep(piece)

    def on_message_complete(self) -> None:
        self._is_whole, self.leaves_open = True, self._parser.should_keep_alive()
        self._halted.set()


class Connection(asyncio.Protocol):
    """To an engine, for one request after the other."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.transport: asyncio.Transport

    async def answered(self, request: bytes) -> Reply | None:
        """The answer from its head on; None where the connection was closed before."""
        reply = self.reply = Reply(self.transport)
        try:
            self.transport.write(request)
            return reply if await reply.begins() else None
        except BaseException:  # whoever asked is gone
            self.transport.abort()
            raise

    def can_rest(self) -> bool:
        """Whether the engine takes another request on it: the last one was written and answered to the end."""
        is_done = self.reply is not None and self.reply.leaves_open and not self.transport.get_write_buffer_size()
        return is_done and not self.transport.is_closing()

    # of asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.reply:
            self.reply.feed(data)
        else:
            self.transport.abort()  # nothing was asked

    def connection_lost(self, exc: Exception | None) -> None:
        if self.reply:
            self.reply.lost()


class Upstream:
    """The way to one engine. A connection whose answer was whole rests for the next request, whose first token then
    waits for no other one.
    """

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self._resting: list[Connection] = []

    @contextlib.asynccontextmanager
    async def asked(self, path: str, body: bytes) -> AsyncIterator[Reply]:
        """The answer to a JSON document, from its head on; leaving before its end closes the connection, and with it
        ends the engine's work.

        Raises NoAnswer.
        """
        plan = self._plan
        request = _HEAD.format(path=path, port=plan.port, key=plan.api_key, length=len(body)).encode() + body
        connection = self._rested()
        reply = await connection.answered(request) if connection else None
        if connection is None or reply is None:  # one that rests may be closed in the moment when it is used
            connection = await self._connected()
            reply = await connection.answered(request)
        if reply is None:
            raise NoAnswer("it closed the connection")
        try:
            yield reply
        finally:
            self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        if connection.can_rest() and len(self._resting) < MOST_RESTING:
            connection.reply = None
            connection.transport.resume_reading()  # the end may have come in a piece that halted it
            self._resting.append(connection)
        else:
            connection.transport.abort()

    def _rested(self) -> Connection | None:
        while self._resting:
            connection = self._resting.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connected(self) -> Connection:
        connecting = asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._plan.port)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return (await connecting)[1]
        except OSError:
            raise NoAnswer("it could not be reached") from None
