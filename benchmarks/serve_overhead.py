#!/usr/bin/env python3
"""What the gateway costs: the same engine asked directly and through the gateway, in alternating pairs.

usage: .venv/server/bin/python benchmarks/serve_overhead.py [--store models] [--run current] [--pairs 8] [--out FILE]

Writes one JSON document: time to first token and output tokens/s at each concurrency, their ratios by pair, and the
median ratio with a bootstrap interval. Every request generates the same number of tokens from a prompt of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import random
import statistics
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from modelstore import Store
from modelstore.machine import cpu_threads
from server.engine import EngineOptions
from server.keys import KeyRing
from server.llamacpp import LlamaCpp
from server.plan import ServePlan, Wish, listen, plan_serving

START_TIMEOUT_S = 120


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask."""

    url: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Round:
    """One load on one endpoint."""

    ttft_ms: float
    tokens_per_s: float


async def one(
    session: aiohttp.ClientSession, endpoint: Endpoint, prompt: str, tokens: int, model: str = "tuned"
) -> tuple[float, int]:
    """Seconds to the first token, and how many came."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= {"ignore_eos": True, "model": model}
    began, first_s, count = time.perf_counter(), 0.0, 0
    async with session.post(f"{endpoint.url}/v1/chat/completions", json=body, headers=endpoint.headers) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if b'"content":"' in line:
                first_s = first_s or time.perf_counter() - began
                count += 1
    return first_s, count


async def load(endpoint: Endpoint, concurrency: int, tokens: int) -> Round:
    """`concurrency` requests at once."""
    prompts = [f"{random.getrandbits(60):015d}: tell a story about a harbour, please." for _ in range(concurrency)]
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        results = await asyncio.gather(*(one(session, endpoint, prompt, tokens) for prompt in prompts))
        seconds = time.perf_counter() - began
    firsts, counts = zip(*results, strict=True)
    if min(counts) < 0.9 * tokens:  # some tokens are parts of a character and come together
        raise SystemExit(f"error: a stream ended after {min(counts)} of {tokens} tokens")
    return Round(1000 * statistics.median(firsts), sum(counts) / seconds)


def compare(direct: Endpoint, gateway: Endpoint, concurrency: int, tokens: int, pairs: int) -> dict[str, Any]:
    """Alternating rounds; the order within a pair alternates too, so that drift falls on both."""
    rounds: dict[str, list[Round]] = {"direct": [], "gateway": []}
    named = [("direct", direct), ("gateway", gateway)]
    for endpoint in (direct, gateway):
        asyncio.run(load(endpoint, concurrency, 8))  # not measured
    for pair in range(pairs):
        for name, endpoint in named if pair % 2 else reversed(named):
            rounds[name].append(asyncio.run(load(endpoint, concurrency, tokens)))
    couples = list(zip(rounds["gateway"], rounds["direct"], strict=True))
    return {
        "concurrency": concurrency,
        "direct": [asdict(entry) for entry in rounds["direct"]],
        "gateway": [asdict(entry) for entry in rounds["gateway"]],
        "ttft_ratio": interval([through.ttft_ms / bare.ttft_ms for through, bare in couples]),
        "tokens_per_s_ratio": interval([through.tokens_per_s / bare.tokens_per_s for through, bare in couples]),
    }


def interval(ratios: list[float]) -> dict[str, float]:
    """Median, and the middle 95% of the medians of 2,000 resamples."""
    drawn = random.Random(1)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "median": round(statistics.median(ratios), 4),
        "low": round(medians[50], 4),
        "high": round(medians[1949], 4),
    }


def run_gateway(plan: ServePlan, port: int) -> None:
    """In a process of its own, as `server serve` does it."""
    from server.serve import serve

    asyncio.run(serve(plan, listen("127.0.0.1", port), KeyRing(None), 5))


def wait_until_ready(url: str) -> float:
    """Seconds until both models generate."""
    began = time.monotonic()
    while time.monotonic() - began < START_TIMEOUT_S:
        try:
            urllib.request.urlopen(f"{url}/ready", timeout=5).close()
            return time.monotonic() - began
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"error: not ready after {START_TIMEOUT_S} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("models"))
    parser.add_argument("--run", default="current")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--port", type=int, default=8399)
    parser.add_argument("--out", type=Path, help="default: stdout")
    wish = parser.parse_args()

    plan = plan_serving(Store(wish.store), wish.run, Wish(LlamaCpp(), EngineOptions(threads=cpu_threads())))
    process = multiprocessing.get_context("spawn").Process(target=run_gateway, args=(plan, wish.port))
    process.start()
    try:
        gateway = Endpoint(f"http://127.0.0.1:{wish.port}", {})
        start_s = wait_until_ready(gateway.url)
        engine = plan.engines[0]
        direct = Endpoint(engine.url, {"Authorization": f"Bearer {engine.api_key}"})
        results = [compare(direct, gateway, level, wish.tokens, wish.pairs) for level in wish.concurrency]
    finally:
        process.terminate()
        process.join(20)
    document = {
        "what": "gateway against the engine behind it",
        "machine": {"processors": cpu_threads(), "python": platform.python_version()},
        "run": plan.run.id,
        "tokens": wish.tokens,
        "start_to_ready_s": round(start_s, 2),
        "results": results,
    }
    text = json.dumps(document, indent=1)
    if wish.out:
        wish.out.parent.mkdir(parents=True, exist_ok=True)
        wish.out.write_text(text + "\n")
    for result in results:
        print(
            result["concurrency"],
            "TTFT",
            result["ttft_ratio"],
            "tokens/s",
            result["tokens_per_s_ratio"],
            file=sys.stderr,
        )
    if not wish.out:
        print(text)


if __name__ == "__main__":
    main()
