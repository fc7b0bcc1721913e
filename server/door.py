"""How many connections the endpoint holds, and which one goes when there is no room for another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Iterator
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from server.plan import BACKLOG

MOST_CONNECTIONS = 10_240  # about 15 kB each when they say nothing
# seconds without a whole request before a connection is closed: slow headers as well as idle clients. Above the time
# that proxies keep theirs (haproxy 5 s, nginx 60 s), so that no request meets a closed one
KEEPALIVE_S = 75.0
SPARE_FILES = 2 * BACKLOG  # accepted at once before they are counted, files, pipes
LEAST_CONNECTIONS = 64
_FULL = b"The server holds as many connections as it can.\n"
_ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"


def connection_limit(to_engines: int) -> int:
    """Raises the limit of open files as far as it may; what then fits beside `to_engines` connections to engines."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems state a limit that they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(LEAST_CONNECTIONS, min(MOST_CONNECTIONS, files - SPARE_FILES - to_engines))


class Door:
    """Counts connections. A new one without room takes that of the oldest that has sent no whole request, if any."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._at_work: set[asyncio.BaseProtocol] = set()

    @contextlib.contextmanager
    def at_work(self, request: web.BaseRequest) -> Iterator[None]:
        """Around the answer to a request that has arrived as a whole: its connection keeps its place."""
        protocol = request.protocol
        self._at_work.add(protocol)
        try:
            yield
        finally:
            self._at_work.discard(protocol)

    def admit(self, server: web.Server) -> asyncio.Protocol:
        """The protocol for a connection that was just accepted."""
        open_ones = server.connections  # oldest first
        if len(open_ones) < self._most:
            return server()
        for protocol in open_ones:
            transport = protocol.transport
            if protocol not in self._at_work and transport is not None and not transport.is_closing():
                transport.abort()
                return server()
        return _Full()


class _Full(asyncio.Protocol):
    """Says that there is no room, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(_ANSWER % (len(_FULL), _FULL))
        transport.close()


class GuardedSite(web.SockSite):
    """aiohttp's site, behind a door."""

    def __init__(self, runner: web.ServerRunner, listener: socket.socket, door: Door) -> None:
        super().__init__(runner, listener, backlog=BACKLOG)
        self.__door = door

    async def start(self) -> None:
        """Listen."""
        await web.BaseSite.start(self)
        server, door = cast(web.Server, self._runner.server), self.__door
        self._server = await asyncio.get_running_loop().create_server(
            lambda: door.admit(server), sock=self._sock, backlog=self._backlog
        )


def quiet_logger() -> logging.Logger:
    """aiohttp's log without what it quotes of malformed requests: a broken header may be a key."""
    logger = logging.getLogger("server.http")
    if not logger.filters:
        logger.addFilter(_without_quotes)
    return logger


def _without_quotes(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.msg, record.args = "malformed request: %s", (type(record.exc_info[1]).__name__,)
        record.exc_info = None
    return True
