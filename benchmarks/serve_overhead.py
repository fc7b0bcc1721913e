#!/usr/bin/env python3
"""What the gateway costs: the same engine asked directly and through the gateway, in alternating pairs of rounds.

usage: .venv/server/bin/python benchmarks/serve_overhead.py [--store FOLDER] [--seconds 300] [--spread S] [--label TEXT]
       [--out FILE]

Two settings, because client, gateway and engine share one machine here. "shared": the engine has a thread on every
processor, as `server serve` starts it, so that each moment of the gateway or the client stops it. "apart": the engine
has one processor less, and client and gateway have that one. Both are reported, with the processor time that gateway
and client take for 1,000 tokens. Every request generates the same number of tokens from a prompt of its own.

Requests of a round come at once, where a moment may decide which of them the engine's first step takes and which wait
for its end; with --spread each waits at random, as long in both rounds of a pair. Writes one JSON document: medians
over pairs of the ratios through/direct, with bootstrap intervals. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving import a_store, bootstrap, cpu_s, described, family, run_gateway
from modelstore import Store
from modelstore.machine import cpu_threads
from server.engine import EngineOptions
from server.llamacpp import LlamaCpp
from server.plan import Wish, plan_serving
from tests.server.conftest import free_port

START_TIMEOUT_S = 120
LEAST_PAIRS = 3
# concurrency -> tokens of each stream, share of the time: the first token varies most where 8 streams take all 8 slots
LEVELS = {1: (64, 0.15), 8: (64, 0.5), 64: (32, 0.35)}


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask."""

    url: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Round:
    """One load on one endpoint; processor seconds for 1,000 tokens, the gateway's only where it was asked."""

    ttft_ms: float
    tokens_per_s: float
    gateway_cpu_s: float
    client_cpu_s: float
    load: float


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


async def load(endpoint: Endpoint, waits_s: list[float], tokens: int, gateway_pid: int) -> Round:
    """One request after each of `waits_s`."""

    async def begun(wait_s: float) -> tuple[float, int]:
        # letters, because a number's first digit is a token of its own, which one of the slots has often read
        prompt = f"{''.join(random.choices(ascii_lowercase, k=12))}: tell a story about a harbour, please."
        await asyncio.sleep(wait_s)
        return await one(session, endpoint, prompt, tokens)

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began, used_s, own_s = time.perf_counter(), cpu_s(gateway_pid), time.process_time()
        results = await asyncio.gather(*map(begun, waits_s))
        seconds = time.perf_counter() - began
    firsts, counts = zip(*results, strict=True)
    if min(counts) < 0.9 * tokens:  # some tokens are parts of a character and come together
        raise SystemExit(f"error: a stream ended after {min(counts)} of {tokens} tokens")
    thousands = sum(counts) / 1000
    return Round(
        round(1000 * statistics.median(firsts), 1),
        round(sum(counts) / seconds, 1),
        round((cpu_s(gateway_pid) - used_s) / thousands, 3),
        round((time.process_time() - own_s) / thousands, 3),
        round(os.getloadavg()[0], 1),
    )


def compare(
    direct: Endpoint, gateway: Endpoint, pid: int, concurrency: int, tokens: int, seconds: float, spread_s: float
) -> dict[str, Any]:
    """Alternating rounds; the order within a pair alternates too, so that drift falls on both."""
    rounds: dict[str, list[Round]] = {"direct": [], "gateway": []}
    named = [("direct", direct), ("gateway", gateway)]
    for endpoint in (direct, gateway):
        asyncio.run(load(endpoint, [0.0] * min(concurrency, 8), 8, pid))  # not measured
    began, pairs = time.monotonic(), 0
    while pairs < LEAST_PAIRS or (time.monotonic() - began) * (pairs + 1) / pairs < seconds:
        waits_s = [random.uniform(0, spread_s) for _ in range(concurrency)]
        for name, endpoint in named if pairs % 2 else reversed(named):
            rounds[name].append(asyncio.run(load(endpoint, waits_s, tokens, pid)))
        pairs += 1
    couples = list(zip(rounds["gateway"], rounds["direct"], strict=True))
    return {
        "concurrency": concurrency,
        "tokens_of_each": tokens,
        "pairs": pairs,
        "ttft_ratio": interval([through.ttft_ms / bare.ttft_ms for through, bare in couples]),
        "tokens_per_s_ratio": interval([through.tokens_per_s / bare.tokens_per_s for through, bare in couples]),
        "tokens_per_s": {name: round(statistics.median(r.tokens_per_s for r in rounds[name]), 1) for name in rounds},
        "ttft_ms": {name: round(statistics.median(r.ttft_ms for r in rounds[name]), 1) for name in rounds},
        "gateway_cpu_s_per_1000": round(statistics.median(r.gateway_cpu_s for r in rounds["gateway"]), 3),
        "client_cpu_s_per_1000": round(statistics.median(r.client_cpu_s for r in rounds["direct"]), 3),
        "direct": [asdict(entry) for entry in rounds["direct"]],
        "gateway": [asdict(entry) for entry in rounds["gateway"]],
    }


def interval(ratios: list[float]) -> dict[str, float]:
    """Median, and the middle 95% of the medians of resamples."""
    low, high = bootstrap(ratios, statistics.median)
    return {"median": round(statistics.median(ratios), 4), "low": low, "high": high}


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


def measure(store: Path, is_apart: bool, levels: list[int], seconds: float, spread_s: float) -> dict[str, Any]:
    """One setting at each concurrency."""
    processors = sorted(os.sched_getaffinity(0))
    threads = max(1, cpu_threads() - is_apart)
    plan = plan_serving(Store(store), "current", Wish(LlamaCpp(), EngineOptions(threads=threads)))
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=run_gateway, args=(plan, port))
    process.start()
    try:
        gateway = Endpoint(f"http://127.0.0.1:{port}", {})
        wait_until_ready(gateway.url)
        pid = int(process.pid or 0)
        if is_apart:
            for engine in family(pid)[1:]:
                confine(engine, processors[1:])
            confine(pid, processors[:1])
            confine(os.getpid(), processors[:1])
        bare = plan.engines[0]
        direct = Endpoint(bare.url, {"Authorization": f"Bearer {bare.api_key}"})
        whole = sum(LEVELS[level][1] for level in levels)
        results = []
        for level in levels:
            tokens, share = LEVELS[level]
            results.append(compare(direct, gateway, pid, level, tokens, seconds * share / whole, spread_s))
            shown = {key: value for key, value in results[-1].items() if key not in ("direct", "gateway")}
            print("apart" if is_apart else "shared", shown, file=sys.stderr, flush=True)
    finally:
        os.sched_setaffinity(0, processors)
        process.terminate()
        process.join(20)
    return {"engine_threads": threads, "results": results}


def confine(pid: int, processors: list[int]) -> None:
    """All threads of the process to these processors."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), processors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="default: one with the embedded small model as base and as run")
    parser.add_argument("--concurrency", type=int, nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--seconds", type=float, default=300, help="for both settings together, without the starts")
    parser.add_argument("--spread", type=float, default=0.0, help="most seconds that a request of a round waits")
    parser.add_argument("--label", default="this machine", help="what sets it apart from others, as: AVX-512")
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    wish = parser.parse_args()
    with a_store(wish.store) as store:
        document = described("the gateway against the engine behind it", store) | {"label": wish.label}
        for name, is_apart in {"shared": False, "apart": True}.items():
            if not is_apart or cpu_threads() > 1:
                document[name] = measure(store, is_apart, wish.concurrency, wish.seconds / 2, wish.spread)
    wish.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
