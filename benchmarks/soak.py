#!/usr/bin/env python3
"""Many streams for a long time: nothing may fail, no memory may be lost. It takes as long as it says: no test runs it.

usage: .venv/server/bin/python benchmarks/soak.py [--store FOLDER] [--streams 64] [--minutes 10] [--out F]

Starts a server of its own; without --store it serves the embedded small model as base and as run. Every stream asks
again as soon as it has ended, tuned and base in turn. Writes one JSON document: requests, failures by kind, output
tokens/s, time to first token, memory of gateway and engines (PSS) over time; exit code 1 when anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serve_overhead import Endpoint, one
from benchmarks.serving import a_store, described, family, memory_mb, server

SAMPLES = 40  # of the memory


async def soak(endpoint: Endpoint, streams: int, seconds: float, tokens: int) -> dict[str, Any]:
    """`streams` at once until `seconds` have passed; the last ones are waited for."""
    began, failures = time.monotonic(), Counter[str]()
    firsts: list[float] = []
    counts: list[int] = []

    async def keep_asking(session: aiohttp.ClientSession, number: int) -> None:
        turn = 0
        while time.monotonic() - began < seconds:
            prompt, turn = f"{number}-{turn}: tell a story about a harbour, please.", turn + 1
            try:
                first_s, count = await one(session, endpoint, prompt, tokens, ("tuned", "base")[number % 2])
                if count < 0.9 * tokens:  # some tokens are parts of a character and come together
                    failures["cut off"] += 1
                firsts.append(first_s)
                counts.append(count)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                failures[getattr(error, "message", "") or type(error).__name__] += 1

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        await asyncio.gather(*(keep_asking(session, number) for number in range(streams)))
    taken_s = time.monotonic() - began
    return {
        "seconds": round(taken_s, 1),
        "requests": len(counts) + sum(failures.values()),
        "failures": dict(failures),
        "tokens_per_s": round(sum(counts) / taken_s, 1),
        "ttft_ms": {"median": round(1000 * statistics.median(firsts)), "highest": round(1000 * max(firsts))},
    }


async def with_memory(
    endpoint: Endpoint, pid: int, streams: int, seconds: float, tokens: int
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The soak, and what gateway and engines held meanwhile."""
    began, samples = time.monotonic(), list[dict[str, float]]()

    async def look() -> None:
        while True:
            gateway, *engines = (round(memory_mb(each), 1) for each in family(pid))
            seen = {
                "s": round(time.monotonic() - began, 1),
                "gateway_mb": gateway,
                "engines_mb": round(sum(engines), 1),
            }
            samples.append(seen | {"load": round(os.getloadavg()[0], 1)})
            await asyncio.sleep(seconds / SAMPLES)

    watch = asyncio.create_task(look())
    found = await soak(endpoint, streams, seconds, tokens)
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
    return found, samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    wish = parser.parse_args()
    with a_store(wish.store) as store:
        document = described(f"{wish.streams} streams at once, tuned and base in turn", store)
        with server(store) as running:
            endpoint = Endpoint(running.url, {})
            load = with_memory(endpoint, running.pid, wish.streams, 60 * wish.minutes, wish.tokens)
            found, samples = asyncio.run(load)
    document |= {"tokens_of_each": wish.tokens, **found, "memory": samples}
    wish.out.write_text(json.dumps(document, indent=1) + "\n")
    print(found, file=sys.stderr)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
