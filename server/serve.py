"""Runs a plan: engines, gateway, the channel, graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import ClientSession, TCPConnector, web

from modelstore import Store
from server.door import KEEPALIVE_S, Door, GuardedSite, connection_limit, quiet_logger
from server.engine import EnginePlan
from server.follow import follow
from server.gateway import Gateway
from server.keys import KeyRing
from server.plan import ServePlan
from server.release import Releases, until_ready
from server.supervise import Engine

TURNS, TURN_S = 10, 0.01


@dataclass(frozen=True)
class Followed:
    """A channel whose changes the server follows, and how a run that it names is planned."""

    store: Store
    channel: str
    plan_run: Callable[[str], ServePlan]


async def serve(
    plan: ServePlan, listener: socket.socket, keys: KeyRing, drain_s: float, followed: Followed | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; running streams get `drain_s` seconds to end.

    Raises EngineFailed when an engine of the first run cannot start.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ClientSession(connector=_connector(), auto_decompress=False) as session:
        releases = Releases(lambda entry: _started(entry, session), plan)
        # twice, because a change of the run has the engines of both
        door = Door(connection_limit(2 * sum(entry.most_requests for entry in plan.engines)))
        gateway = Gateway(releases, keys, door)
        options = {"access_log": None, "logger": quiet_logger(), "keepalive_timeout": KEEPALIVE_S}
        options |= {"handler_cancellation": True, "tcp_keepalive": False}  # they have it from the listener
        runner = web.ServerRunner(gateway.server(**options), shutdown_timeout=drain_s)
        await runner.setup()
        site = GuardedSite(runner, listener, door)
        await site.start()
        duties = [asyncio.create_task(_lead(releases, listener, followed)), asyncio.create_task(keys.follow_file())]
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({*duties, stopped}, return_when=asyncio.FIRST_COMPLETED)
        gateway.draining = True
        if stopped in done:
            print(f"stopping: running requests have {drain_s:g} s", file=sys.stderr, flush=True)
        for task in {*duties, stopped} - done:
            task.cancel()
        await asyncio.gather(*duties, return_exceptions=True)
        await site.stop()
        # aiohttp reads nothing more from a connection that it closes before its handler has begun, and waits all of
        # `drain_s` for it: those that were accepted last get some turns of the loop first
        for _ in range(TURNS):
            await asyncio.sleep(TURN_S)
        await runner.cleanup()  # waits for the running requests
        await releases.stop()
    for task in done:
        with contextlib.suppress(asyncio.CancelledError):
            task.result()


def _started(entry: EnginePlan, session: ClientSession) -> Engine:
    engine = Engine(entry, session)
    engine.start()
    return engine


def _connector() -> TCPConnector:
    """For proofs and metrics, one connection each: between two of them llama.cpp ends one that is idle, after 5 s."""
    return TCPConnector(limit=0, force_close=True)


async def _lead(releases: Releases, listener: socket.socket, followed: Followed | None) -> None:
    """The first run, then those that the channel names. Never returns; raises EngineFailed."""
    await until_ready(list(releases.current.engines))
    host, port = listener.getsockname()[:2]
    first = releases.current.id
    print(f"ready: {first} (also 'tuned') and 'base' on http://{host}:{port}/v1", file=sys.stderr, flush=True)
    if followed:
        await follow(releases, followed.store, followed.channel, followed.plan_run)
    await asyncio.Event().wait()
