"""Closed-loop load: so many streams at once, each asking again as soon as it is answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clients.endpoint import Endpoint, model_names, refuse_unknown

if TYPE_CHECKING:
    from openai import AsyncOpenAI

WORDS = ("harbour", "quay", "ledger", "claim", "invoice", "tide", "winch", "rope", "crane", "depot", "pilot", "berth")


@dataclass(frozen=True)
class BenchWish:
    """The load. Prompts are unique, so that no prefix cache can flatter."""

    model: str
    streams: tuple[int, ...]
    requests: int
    prompt_words: int
    output_tokens: int


@dataclass(frozen=True)
class _Timing:
    ttft_ms: float
    tpot_ms: float | None
    seconds: float
    output_tokens: int


async def run_bench(endpoint: Endpoint, wish: BenchWish) -> list[dict[str, Any]]:
    """One row of figures for each concurrency; one request of warm-up each, not counted."""
    refuse_unknown([wish.model], await model_names(endpoint), endpoint.url)
    return [await _at(endpoint.client(600), wish, streams) for streams in wish.streams]


async def _at(client: AsyncOpenAI, wish: BenchWish, streams: int) -> dict[str, Any]:
    rng = random.Random(streams)  # noqa: S311  a load, not a secret
    await _one(client, wish, rng)
    waiting = max(wish.requests, streams)
    timings: list[_Timing] = []
    errors: dict[str, int] = {}

    async def stream() -> None:
        nonlocal waiting
        while waiting > 0:
            waiting -= 1
            try:
                timings.append(await _one(client, wish, rng))
            except Exception as fault:  # every kind of failure is a figure of this table
                errors[type(fault).__name__] = errors.get(type(fault).__name__, 0) + 1

    began = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    return _row(streams, timings, errors, time.perf_counter() - began)


async def _one(client: AsyncOpenAI, wish: BenchWish, rng: random.Random) -> _Timing:
    prompt = " ".join(rng.choices(WORDS, k=wish.prompt_words)) + f" {rng.random()}"
    began, first, tokens = time.perf_counter(), None, 0
    stream = await client.chat.completions.create(
        model=wish.model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=wish.output_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter()
    seconds = time.perf_counter() - began
    if first is None or not tokens:
        raise ConnectionError("the stream ended without a token or without usage")
    tpot_ms = 1000 * (began + seconds - first) / (tokens - 1) if tokens > 1 else None
    return _Timing(1000 * (first - began), tpot_ms, seconds, tokens)


def _row(streams: int, timings: Sequence[_Timing], errors: dict[str, int], seconds: float) -> dict[str, Any]:
    tpots = [timing.tpot_ms for timing in timings if timing.tpot_ms is not None]
    row: dict[str, Any] = {"streams": streams, "completed": len(timings), "failed": sum(errors.values())}
    row["output_tokens_per_s"] = round(sum(t.output_tokens for t in timings) / seconds, 1) if timings else None
    for share in (50, 90, 99):
        row[f"ttft_ms_p{share}"] = _percentile([t.ttft_ms for t in timings], share)
        row[f"tpot_ms_p{share}"] = _percentile(tpots, share)
        row[f"e2e_s_p{share}"] = _percentile([t.seconds for t in timings], share)
    return row | {"errors": errors}


def _percentile(values: Sequence[float], share: int) -> float | None:
    """Nearest rank; None without values."""
    ordered = sorted(values)
    return round(ordered[max(0, -(-share * len(ordered) // 100) - 1)], 3) if ordered else None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a person."""
    columns = ("streams", "completed", "failed", "output_tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50")
    lines = ["  ".join(columns)]
    for row in rows:
        cells = ("-" if row[name] is None else str(row[name]) for name in columns)
        lines.append("  ".join(cell.rjust(len(name)) for cell, name in zip(cells, columns, strict=True)))
    return "\n".join(lines)
