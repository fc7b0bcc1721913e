"""A stream of events on its way to a client: every piece in the turn of the event loop that brought it."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import formatdate
from functools import lru_cache

from aiohttp import HttpVersion11, web

from server.errors import ApiError
from server.plan import UNREAD_S
from server.supervise import Engine
from server.upstream import BrokenOff, Reply

CLIENT_GONE = 499  # nginx's code; only the log and the counters see it
EVENTS = "text/event-stream"
MOST_UNREAD, FEW_UNREAD = 1 << 16, 1 << 14  # bytes that a client has not taken: the engine waits, and goes on
LOOK_S = 0.05  # between two looks at a client that reads slowly
LAST_CHUNK = b"0\r\n\r\n"


class EventStream(web.StreamResponse):
    """The answer to a request, should `reply` come to be a stream. To be made while the engine computes: its head is
    ready then. aiohttp makes its own between the engine's head and the first token, and that took a fifth of what the
    gateway adds to this token's time (docs/benchmarks.md#what-the-gateway-adds-to-a-request).
    """

    def __init__(self, request: web.BaseRequest, reply: Reply, engine: Engine) -> None:
        super().__init__()
        if request.transport is None:
            raise _gone()
        self._client, self._reply, self._engine = request.transport, reply, engine
        self._has_chunks = request.version >= HttpVersion11
        self._stays = self._has_chunks and request.keep_alive
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {EVENTS}", f"Date: {_date(int(time.time()))}"]
        lines += [f"x-request-id: {request['id']}", "Cache-Control: no-store", "X-Accel-Buffering: no"]
        lines += ["Transfer-Encoding: chunked"] if self._has_chunks else []
        lines += [] if self._stays else ["Connection: close"]
        self._head = "\r\n".join([*lines, "", ""]).encode()
        self._is_ended = not self._has_chunks
        reply.expect(EVENTS, self._pass_on)

    async def passed_on(self) -> None:
        """Until the client has everything; one that reads slowly halts the engine. Raises ApiError."""
        client, reply = self._client, self._reply
        if client.is_closing():
            raise _gone()
        self._write(b"")
        try:
            while not await reply.halted():
                async with asyncio.timeout(UNREAD_S):
                    while client.get_write_buffer_size() > FEW_UNREAD:
                        await asyncio.sleep(LOOK_S)
                reply.resume()
        except TimeoutError:
            client.abort()
            raise ApiError(CLIENT_GONE, "The client does not read.") from None
        except BrokenOff:
            if client.is_closing():
                raise _gone() from None
            # never end silently: the text so far would look complete
            fault = ApiError(502, "The engine broke off.").document()
            self._write(self._framed(f"data: {json.dumps(fault)}\n\n".encode()))

    def _pass_on(self, piece: bytes) -> None:
        self._engine.last_output_at = time.monotonic()
        if self._client.is_closing():
            return
        data = self._framed(piece)
        if self._reply.is_whole and not self._is_ended:
            self._is_ended, data = True, data + LAST_CHUNK  # no send of its own
        self._write(data)
        if self._client.get_write_buffer_size() > MOST_UNREAD:
            self._reply.pause()

    def _write(self, data: bytes) -> None:
        """After the head, which goes once."""
        head, self._head = self._head, b""
        self._client.write(head + data)

    def _framed(self, piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self._has_chunks else piece

    # of aiohttp, which asks when the handler has returned

    @property
    def prepared(self) -> bool:
        """Whether the head is gone."""
        return not self._head

    @property
    def keep_alive(self) -> bool:
        """Whether the connection is for another request."""
        return self._stays

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to do."""

    async def write_eof(self, data: bytes = b"") -> None:
        """The last chunk, which is empty, if it is not gone yet."""
        if not self._is_ended and not self._client.is_closing():
            self._is_ended = True
            self._client.write(LAST_CHUNK)


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _gone() -> ApiError:
    return ApiError(CLIENT_GONE, "The client went away.")
