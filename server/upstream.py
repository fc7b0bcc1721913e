"""One request to an engine, on a connection of its own, whose answer is passed on in the turn of the event loop that
brought it.

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
    """An engine's answer as it comes; what has come is kept until `read` or `pour` asks for it."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = ""
        self._parser = httptools.HttpResponseParser(self)
        self._answers = asyncio.Event()  # the head is there, or never comes
        self._pieces: list[bytes] = []
        self._keep: Callable[[bytes], None] = self._hold
        self._is_whole, self._is_lost = False, False
        self._halted = asyncio.Event()  # nothing more comes: the end, or `pause`
        self._transport: asyncio.Transport | None = None

    async def head(self) -> None:
        """Until `status` and `content_type` are known. Raises NoAnswer."""
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

    def pour(self, sink: Callable[[bytes], None]) -> None:
        """Hand every piece of the body to `sink`, from the beginning."""
        self._keep, held = sink, self._pieces
        self._pieces = []
        self.resume()
        for piece in held:
            sink(piece)

    def pause(self) -> None:
        """Read nothing more until `resume`. What was read already is still handed on."""
        if self._transport and not self._is_whole and not self._is_lost:
            self._transport.pause_reading()
            self._halted.set()

    def resume(self) -> None:
        """Read on."""
        if self._transport and not self._is_whole and not self._is_lost:
            self._halted.clear()
            self._transport.resume_reading()

    async def halted(self) -> bool:
        """Until the answer is whole, which is True, or paused. Raises BrokenOff."""
        await self._halted.wait()
        if self._is_lost:
            raise BrokenOff
        return self._is_whole

    def _hold(self, piece: bytes) -> None:
        self._pieces.append(piece)
        if len(self._pieces) == MOST_HELD:
            self.pause()

    # of asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
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
        self._is_whole = True
        self._halted.set()


@contextlib.asynccontextmanager
async def asked(engine: EnginePlan, path: str, body: bytes) -> AsyncIterator[Reply]:
    """The answer to a JSON document, from its head on; leaving ends the connection, and with it the engine's work.

    Raises NoAnswer.
    """
    head = _HEAD.format(path=path, port=engine.port, key=engine.api_key, length=len(body))
    connecting = asyncio.get_running_loop().create_connection(Reply, "127.0.0.1", engine.port)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, reply = await connecting
    except OSError:
        raise NoAnswer("it could not be reached") from None
    try:
        transport.write(head.encode() + body)
        await reply.head()
        yield reply
    finally:
        transport.abort()
