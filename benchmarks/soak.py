#!/usr/bin/env python3
"""Many streams for a long time on a running server: nothing may fail. It takes as long as it says, so no test runs it.

usage: .venv/server/bin/python benchmarks/soak.py [--url http://127.0.0.1:8000] [--streams 64] [--minutes 10] [--out F]

Every stream asks again as soon as it has ended, tuned and base in turn. Writes one JSON document: requests, failures by
kind, output tokens/s and time to first token; exit code 1 when anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serve_overhead import Endpoint, one
from modelstore.machine import cpu_threads


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default="", help="an API key, if the server asks for one")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="default: stdout")
    wish = parser.parse_args()
    headers = {"Authorization": f"Bearer {wish.key}"} if wish.key else {}
    found = asyncio.run(soak(Endpoint(wish.url, headers), wish.streams, 60 * wish.minutes, wish.tokens))
    document = {
        "what": f"{wish.streams} streams at once, tuned and base in turn",
        "command": " ".join(["benchmarks/soak.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processors": cpu_threads(), "python": platform.python_version()},
        "tokens_of_each": wish.tokens,
        **found,
    }
    text = json.dumps(document, indent=1) + "\n"
    if wish.out:
        wish.out.parent.mkdir(parents=True, exist_ok=True)
        wish.out.write_text(text)
    print(text, end="", file=sys.stderr if wish.out else sys.stdout)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
