"""Keeps the server on the run that its channel names."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from modelstore import Store, UserError
from server.plan import ServePlan
from server.release import Releases
from server.supervise import EngineFailed

LOOK_S = 0.5  # a small file is read
RETRY_S = 60.0  # a run that could not be served is tried again: the memory that it lacked may be free by then


async def follow(releases: Releases, store: Store, channel: str, plan_run: Callable[[str], ServePlan]) -> None:
    """Switch whenever `channel` names another run. A run that cannot be served leaves the old one in place."""
    refused, retry_at = "", 0.0
    while True:
        await asyncio.sleep(LOOK_S)
        wanted = _named(store, channel)
        if wanted != refused:
            refused = ""
        if wanted is None or wanted == releases.current.id or (refused and time.monotonic() < retry_at):
            continue
        _say(f"{channel} names {wanted} now: starting it beside {releases.current.id}")
        began = time.monotonic()
        try:
            await releases.switch(await asyncio.to_thread(plan_run, wanted))
            _say(f"switched to {wanted} after {time.monotonic() - began:.1f} s")
        except (UserError, EngineFailed) as error:
            refused, retry_at = wanted, time.monotonic() + RETRY_S
            _say(f"still serving {releases.current.id}: {wanted} cannot be served: {error}")


def _named(store: Store, channel: str) -> str | None:
    try:
        return store.channel(channel)
    except (UserError, OSError):  # a damaged channel is no reason to stop what runs
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
