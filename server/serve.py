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
from server.supervise import Engine, EngineFailed


async def serve(plan: ServePlan, listener: socket.socket, keys: Mapping[str, str], drain_s: float) -> None:
    """Serve until SIGTERM or SIGINT; running streams get `drain_s` seconds to end.

    Raises EngineFailed when an engine ends before it was ever ready.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ClientSession(connector=_connector(), auto_decompress=False) as session:
        engines = [Engine(engine, session) for engine in plan.engines]
        gateway = Gateway(plan.run.id, engines, keys, plan.limits, session)
        runner = web.AppRunner(
            gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=drain_s
        )
        await runner.setup()
        await web.SockSite(runner, listener).start()
        for engine in engines:
            engine.start()
        told = asyncio.create_task(_tell_when_ready(plan, engines, listener))
        failed = await _stopped_or_failed(stop, engines)
        gateway.draining = True
        if not failed:
            print(f"stopping: running requests have {drain_s:g} s", file=sys.stderr, flush=True)
        await runner.cleanup()  # stops listening, then waits for the running requests
        told.cancel()
        await asyncio.gather(*(engine.stop() for engine in engines))
    if failed:
        raise EngineFailed(f"the engine of '{failed.plan.role}' {failed.why_not_ready}; its last words stand above")


def _connector() -> TCPConnector:
    """One connection a request: llama.cpp ends idle ones after 5 s, and a POST that meets this cannot be repeated."""
    return TCPConnector(limit=0, force_close=True)


async def _stopped_or_failed(stop: asyncio.Event, engines: list[Engine]) -> Engine | None:
    """Returns at the signal, or with the first engine that cannot start."""
    stopped = asyncio.create_task(stop.wait())
    failures = {asyncio.create_task(engine.cannot_start.wait()): engine for engine in engines}
    done, pending = await asyncio.wait({stopped, *failures}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return next((failures[task] for task in done if task in failures), None)


async def _tell_when_ready(plan: ServePlan, engines: list[Engine], listener: socket.socket) -> None:
    while not all(engine.is_ready for engine in engines):
        await asyncio.sleep(0.05)
    host, port = listener.getsockname()[:2]
    print(f"ready: {plan.run.id} (also 'tuned') and 'base' on http://{host}:{port}/v1", file=sys.stderr, flush=True)
