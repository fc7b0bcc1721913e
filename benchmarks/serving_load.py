"""A load generator for servers that are faster than one Python process: closed loops, spread over several processes,
with figures of a window in which all streams are at work.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

WORDS = ("red", "blue", "green", "house", "tree", "river", "stone", "light", "hand", "door", "book", "road", "bird")
STREAMS_OF_A_PROCESS = 32


@dataclass(frozen=True)
class Target:
    """Where and how to ask."""

    url: str
    headers: dict[str, str]
    model: str = "tuned"


@dataclass(frozen=True)
class Load:
    """`streams` closed loops; what happens in the `window_s` seconds after the first `ramp_s` counts. Each waits up to
    `pause_s` before it asks: an engine computes all streams in steps, and who asks within a millisecond of an
    answer meets the next step, while who comes a moment later waits for one more, tens of milliseconds with many
    streams. Without a pause the time of the first token shows which of the two happened. Loads with the same
    `pause_seed` wait alike, so that a pair differs by its path and not by how many happened to be asking.
    """

    streams: int
    words: int
    output_tokens: int
    ramp_s: float
    window_s: float
    pause_s: float = 0.0
    pause_seed: int = 0


@dataclass
class Seen:
    """What one process saw; times in seconds of the machine's monotonic clock."""

    pieces: list[float] = field(default_factory=list)  # when each piece of text came
    gaps_s: list[float] = field(default_factory=list)
    firsts: list[tuple[float, float]] = field(default_factory=list)  # when, and how long after the request
    answered: list[tuple[float, int, int, int]] = field(default_factory=list)  # when; pieces, tokens out, tokens in
    failures: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


async def ask(
    session: aiohttp.ClientSession, target: Target, words: int, tokens: int, rng: random.Random, seen: Seen
) -> None:
    """One streamed answer to a prompt that nobody sent before."""
    prompt = f"{rng.getrandbits(60):018d} " + " ".join(rng.choices(WORDS, k=words))
    body = {"model": target.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    began, last, count, usage = time.monotonic(), 0.0, 0, {}
    async with session.post(f"{target.url}/v1/chat/completions", json=body, headers=target.headers) as reply:
        if reply.status != 200:
            raise ConnectionError(f"{reply.status} {(await reply.text())[:200]}")
        async for line in reply.content:
            if b'"usage":{' in line:
                usage = json.loads(line[6:])["usage"]
            elif b'"choices":[{' in line and b'"role":' not in line:
                now = time.monotonic()
                if last:
                    seen.gaps_s.append(now - last)
                else:
                    seen.firsts.append((now, now - began))
                seen.pieces.append(now)
                last, count = now, count + 1
    if not count or not usage:
        raise ConnectionError("a stream ended without text or without usage")
    seen.answered.append((last, count, int(usage["completion_tokens"]), int(usage["prompt_tokens"])))


async def _loops(target: Target, load: Load, streams: range, seed: int, end: float) -> Seen:
    seen, rng = Seen(), random.Random(seed)
    connector, timeout = aiohttp.TCPConnector(limit=0, force_close=True), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def loop(pauses: random.Random) -> None:
            while time.monotonic() < end:
                if load.pause_s:
                    await asyncio.sleep(pauses.uniform(0, load.pause_s))
                await ask(session, target, load.words, load.output_tokens, rng, seen)

        running = [asyncio.create_task(loop(random.Random(f"{load.pause_seed} {one}"))) for one in streams]
        done, waiting = await asyncio.wait(running, timeout=max(0.0, end - time.monotonic()))
        for task in waiting:  # the window is over
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        seen.failures = [repr(task.exception())[:300] for task in done if task.exception()]
    seen.cpu_s = time.process_time()
    return seen


def _process(target: Target, load: Load, streams: range, seed: int, end: float, answer: Any) -> None:
    answer.send(asyncio.run(_loops(target, load, streams, seed, end)))


def run(target: Target, load: Load) -> dict[str, Any]:
    """The figures of one load. Raises SystemExit when a request failed."""
    everyone = range(load.streams)
    shares = [everyone[first : first + STREAMS_OF_A_PROCESS] for first in everyone[::STREAMS_OF_A_PROCESS]]
    context, started, entropy = multiprocessing.get_context("fork"), [], random.SystemRandom()
    begin = time.monotonic()
    end = begin + load.ramp_s + load.window_s
    for streams in shares:
        ours, theirs = context.Pipe(duplex=False)
        seed = entropy.getrandbits(60)
        process = context.Process(target=_process, args=(target, load, streams, seed, end, theirs))
        process.start()
        started.append((process, ours))
    found = [pipe.recv() for _, pipe in started]
    for process, _ in started:
        process.join()
    if failures := [failure for seen in found for failure in seen.failures]:
        raise SystemExit(f"error: {len(failures)} streams failed, the first with {failures[0]}")
    return _figures(found, load, end - load.window_s, end)


def _figures(found: list[Seen], load: Load, since: float, until: float) -> dict[str, Any]:
    answered = [one for seen in found for one in seen.answered]
    pieces = sum(since <= at < until for seen in found for at in seen.pieces)
    # some pieces hold two tokens, and some tokens are parts of a character and come with the next one
    tokens_of_a_piece = sum(one[2] for one in answered) / sum(one[1] for one in answered) if answered else 1.0
    ttft = sorted(1000 * took for seen in found for at, took in seen.firsts if since <= at < until)
    gaps = sorted(1000 * gap for seen in found for gap in seen.gaps_s)
    return {
        "streams": load.streams,
        "output_tokens_per_s": round(pieces * tokens_of_a_piece / load.window_s, 1),
        "requests_answered": len(answered),
        "prompt_tokens": round(statistics.mean(one[3] for one in answered), 1) if answered else None,
        "ttft_ms_p50": _share(ttft, 0.5),
        "ttft_ms_p99": _share(ttft, 0.99),
        "itl_ms_p50": _share(gaps, 0.5),
        "itl_ms_p99": _share(gaps, 0.99),
        "busiest_client": round(max(seen.cpu_s for seen in found) / (load.ramp_s + load.window_s), 2),
    }


def _share(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else None


def fitted_words(target: Target, tokens: int) -> int:
    """How many words make a prompt of so many tokens, chat template included."""

    async def prompt_tokens(words: int) -> int:
        seen = Seen()
        async with aiohttp.ClientSession() as session:
            await ask(session, target, words, 2, random.Random(words), seen)
        return seen.answered[0][3]

    few, many = 20, tokens // 2
    short, long = asyncio.run(prompt_tokens(few)), asyncio.run(prompt_tokens(many))
    return max(1, few + round((tokens - short) * (many - few) / (long - short)))
