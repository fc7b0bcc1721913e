"""Load on an endpoint: closed loops (so many streams, each asking again once it is answered) and open loops (requests
arrive at a rate, whether earlier ones are answered or not).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from clients.bench_figures import Slo, row
from clients.endpoint import Endpoint, model_names, refuse_unknown
from clients.engine_facts import model_memory
from clients.load import Load, Prompts, Timing, fitted_prompts, request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class BenchWish:
    """The loads, one after the other: closed loops at `streams`, then open loops at `rates` requests a second."""

    load: Load
    streams: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    requests: int = 100
    warmup: int = 1
    slo: Slo = field(default_factory=Slo)
    seed: int = 3407


@dataclass
class _Outcome:
    timings: list[Timing]
    errors: Counter[str]
    seconds: float = 0.0


async def run_bench(
    endpoint: Endpoint, wish: BenchWish, on_row: Callable[[dict[str, Any]], None] = lambda _: None
) -> list[dict[str, Any]]:
    """One row of figures for each load; warm-up requests are not counted."""
    refuse_unknown([wish.load.model], await model_names(endpoint), endpoint.url)
    rows = []
    async with endpoint.client(TIMEOUT_S) as client:
        prompts = await fitted_prompts(client, wish.load, wish.seed)
        loads: list[tuple[dict[str, Any], Callable[[], Awaitable[_Outcome]]]] = [
            *(({"streams": n}, partial(_closed, client, wish, prompts, n)) for n in wish.streams),
            *(({"rate": rate}, partial(_open, client, wish, prompts, rate)) for rate in wish.rates),
        ]
        for name, run in loads:
            outcome = await run()
            memory = await model_memory(endpoint, wish.load.model)
            rows.append(name | row(outcome.timings, outcome.errors, outcome.seconds, wish.slo) | {"memory": memory})
            on_row(rows[-1])
    return rows


async def _closed(client: AsyncOpenAI, wish: BenchWish, prompts: Prompts, streams: int) -> _Outcome:
    await _warm_up(client, wish, prompts, min(streams, wish.requests))
    waiting = max(wish.requests, streams)
    outcome = _Outcome([], Counter())

    async def stream() -> None:
        nonlocal waiting
        while waiting > 0:
            waiting -= 1
            await _counted(outcome, request(client, wish.load, prompts.next()))

    began = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _open(client: AsyncOpenAI, wish: BenchWish, prompts: Prompts, rate: float) -> _Outcome:
    """Poisson arrivals: exponential gaps. How late the client itself was is a figure of the row (late_ms_p99)."""
    await _warm_up(client, wish, prompts, 1)
    gaps = random.Random(wish.seed)  # noqa: S311  a load, not a secret
    outcome = _Outcome([], Counter())
    began = due = time.perf_counter()
    running = []
    for _ in range(wish.requests):
        due += gaps.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sent = _counted(outcome, request(client, wish.load, prompts.next(), due))
        running.append(asyncio.create_task(sent))
    await asyncio.gather(*running)
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _warm_up(client: AsyncOpenAI, wish: BenchWish, prompts: Prompts, streams: int) -> None:
    """Faults here show again, and are counted, in the load itself."""
    sent = (request(client, wish.load, prompts.next()) for _ in range(wish.warmup * streams))
    await asyncio.gather(*sent, return_exceptions=True)


async def _counted(outcome: _Outcome, sent: Awaitable[Timing]) -> None:
    try:
        outcome.timings.append(await sent)
    except Exception as fault:  # every kind of failure is a figure of this table
        outcome.errors[type(fault).__name__] += 1
