"""Runs a plan: engines, gateway, graceful end."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Mapping

from aiohttp import ClientSession, TCPConnector, web

from server.gateway import Gateway
from server.plan import ServePlan
from server.supervise import Engine


async def serve(plan: ServePlan, listener: socket.socket, keys: Mapping[str, str], drain_s: float) -> None:
    """Serve until SIGTERM or SIGINT; running streams get `drain_s` seconds to end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ClientSession(connector=TCPConnector(limit=0), auto_decompress=False) as session:
        engines = [Engine(engine, session) for engine in plan.engines]
        gateway = Gateway(plan.run.id, engines, keys, session)
        runner = web.AppRunner(
            gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=drain_s
        )
        await runner.setup()
        await web.SockSite(runner, listener).start()
        for engine in engines:
            engine.start()
        told = asyncio.create_task(_tell_when_ready(plan, engines, listener))
        await stop.wait()
        gateway.draining = True
        print(f"stopping: running requests have {drain_s:g} s", file=sys.stderr, flush=True)
        await runner.cleanup()  # stops listening, then waits for the running requests
        told.cancel()
        await asyncio.gather(*(engine.stop() for engine in engines))


async def _tell_when_ready(plan: ServePlan, engines: list[Engine], listener: socket.socket) -> None:
    while not all(engine.is_ready for engine in engines):
        await asyncio.sleep(0.05)
    host, port = listener.getsockname()[:2]
    print(f"ready: {plan.run.id} (also 'tuned') and 'base' on http://{host}:{port}/v1", file=sys.stderr, flush=True)
