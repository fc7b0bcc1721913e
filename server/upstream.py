"""Requests to an engine, each on a connection of its own. What comes of a stream is handed on in the turn of the event
loop that brought it.

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
LATER_S = 0.002  # the engine has read the request by then, and computes
MOST_HELD = 4  # pieces that nobody has asked for yet, each of what was read at once
_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
)


class NoAnswer(Exception):
    """The engine was not reached, or closed the connection before it had answered anything: it may be asked again."""


class BrokenOff(Exception):
    """The engine closed the connection within its answer."""

    def __str__(self) -> str:
        return "it broke off"


class Reply(asyncio.Protocol):
    """An engine's answer as it comes; what has come is kept until `read` asks for it, but for a stream that was
    expected.
    """

    def __init__(self) -> None:
        self.status = 0
        self.content_type = ""
        self._parser = httptools.HttpResponseParser(self)
        self._answers = asyncio.Event()  # the head is there, or never comes
        self._expected = ""
        self._sink: Callable[[bytes], None] = self._hold
        self._pieces: list[bytes] = []
        self._keep: Callable[[bytes], None] = self._hold
        self._came: list[bytes] = []  # of the body, by the bytes that were just read
        self.is_whole = False  # nothing more comes than what `sink` is being handed
        self._is_lost = False
        self._halted = asyncio.Event()  # nothing more comes: the end, or `pause`
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent: nothing was said, and the connection stands."""
        return self._is_coming and not self.status

    def ask(self, request: bytes) -> None:
        """Send it, which is done once."""
        if self._transport:
            self._transport.write(request)

    def end(self) -> None:
        """Close the connection at once."""
        if self._transport:
            self._transport.abort()

    def expect(self, content_type: str, sink: Callable[[bytes], None]) -> None:
        """Hand what comes of the body to `sink`, once for all that is read at once, if the status is 200 and the type
        this one. To be said before the next turn of the event loop.
        """
        self._expected, self._sink = content_type, sink

    async def begins(self) -> None:
        """Until `status` and `content_type` are there. Raises NoAnswer."""
        await self._answers.wait()
        if not self.status:
            raise NoAnswer("it closed the connection")

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

    def pause(self) -> None:
        """Read nothing more until `resume`. What was read already is still handed on."""
        if self._transport and self._is_coming:
            self._transport.pause_reading()
            self._halted.set()

    def resume(self) -> None:
        """Read on."""
        if self._transport and self._is_coming:
            self._halted.clear()
            self._transport.resume_reading()

    async def halted(self) -> bool:
        """Until the answer is whole, which is True, or paused. Raises BrokenOff."""
        await self._halted.wait()
        if self._is_lost:
            raise BrokenOff
        return self.is_whole

    @property
    def _is_coming(self) -> bool:
        stands = self._transport is not None and not self._transport.is_closing()
        return stands and not self.is_whole and not self._is_lost

    def _hold(self, piece: bytes) -> None:
        self._pieces.append(piece)
        if len(self._pieces) == MOST_HELD:
            self.pause()

    # of asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        finally:
            if self._came:
                piece, self._came = b"".join(self._came), []
                self._keep(piece)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = not self.is_whole
        self._answers.set()
        self._halted.set()

    # of httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value.decode("latin-1").partition(";")[0].strip().lower()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status == 200 and self.content_type == self._expected:
            self._keep = self._sink
        self._answers.set()

    def on_body(self, piece: bytes) -> None:
        self._came.append(piece)

    def on_message_complete(self) -> None:
        self.is_whole = True
        self._halted.set()


class Upstream:
    """The way to one engine. While it computes, a connection for the next request is opened, so that no first token
    waits for that, and once more when it has answered: llama.cpp closes one that says nothing for 5 s.
    """

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self._spare: Reply | None = None
        self._opening: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def asked(self, path: str, body: bytes) -> AsyncIterator[Reply]:
        """The answer to a JSON document that was sent; leaving ends the connection, and with it the engine's work.

        Raises NoAnswer.
        """
        plan = self._plan
        request = _HEAD.format(path=path, port=plan.port, key=plan.api_key, length=len(body)).encode() + body
        spare, self._spare = self._spare, None
        reply = spare if spare and spare.is_open else await self._connected()
        try:
            reply.ask(request)
            asyncio.get_running_loop().call_later(LATER_S, self._prepare)
            yield reply
        finally:
            reply.end()
            self._prepare()

    def _prepare(self) -> None:
        if not (self._spare and self._spare.is_open) and (self._opening is None or self._opening.done()):
            self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        with contextlib.suppress(NoAnswer):
            self._spare = await self._connected()

    async def _connected(self) -> Reply:
        connecting = asyncio.get_running_loop().create_connection(Reply, "127.0.0.1", self._plan.port)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return (await connecting)[1]
        except OSError:
            raise NoAnswer("it could not be reached") from None
