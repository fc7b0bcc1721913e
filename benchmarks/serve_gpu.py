#!/usr/bin/env python3
"""Serving on a GPU: each engine asked directly and through the gateway, at rising concurrency, on one published run.

usage: python -m benchmarks.serve_gpu --store FOLDER --out FILE [--cases NAME,…] [--levels 1,8,64,256] [--pairs 2]

512 random tokens in, 128 out, greedy, closed loop; no prompt comes twice. Every case starts the server as an operator
would; the bare engine is the one behind it, asked on its own port. Writes throughput, TTFT and time per output token
for both ways, start time, and the GPU memory that the whole server holds (base and tuned).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serve_overhead import Endpoint, run_gateway
from benchmarks.serving import wait_for
from modelstore import Store
from server.choose import Asked, choose
from server.plan import plan_serving
from tests.server.conftest import free_port

INPUT_TOKENS, OUTPUT_TOKENS, ROUNDS = 512, 128, 3
START_TIMEOUT_S = 420
CASES: dict[str, Asked] = {
    "vllm-merged": Asked("vllm", weights="merged", slots=256),
    "vllm-adapter": Asked("vllm", weights="adapter", slots=256),
    "llamacpp-Q4_K_M-8": Asked("llamacpp", quantization="Q4_K_M", slots=8, context_tokens=768),
    "llamacpp-Q4_K_M-64": Asked("llamacpp", quantization="Q4_K_M", slots=64, context_tokens=768),
    "llamacpp-Q8_0-8": Asked("llamacpp", quantization="Q8_0", slots=8, context_tokens=768),
    "llamacpp-Q8_0-64": Asked("llamacpp", quantization="Q8_0", slots=64, context_tokens=768),
}


async def one(session: aiohttp.ClientSession, endpoint: Endpoint) -> tuple[float, float, int]:
    """Seconds to the first token and to the last, and how many tokens the engine counted."""
    prompt = [random.randrange(400, 31000) for _ in range(INPUT_TOKENS)]
    body = {"model": "tuned", "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0, "stream": True}
    body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    began, first, last, counted = time.perf_counter(), 0.0, 0.0, 0
    async with session.post(f"{endpoint.url}/v1/completions", json=body, headers=endpoint.headers) as reply:
        if reply.status != 200:
            raise RuntimeError(f"{reply.status} {(await reply.text())[:300]}")
        async for line in reply.content:
            if b'"text":' in line:
                last = time.perf_counter() - began
                first = first or last
            if b'"completion_tokens":' in line:
                counted = json.loads(line[6:])["usage"]["completion_tokens"]
    return first, last, counted


async def load(endpoint: Endpoint, concurrency: int) -> dict[str, Any]:
    """A closed loop of ROUNDS requests for each stream, at least 8."""
    left, found, errors = list(range(max(8, ROUNDS * concurrency))), [], list[str]()

    async def stream(session: aiohttp.ClientSession) -> None:
        while left:
            left.pop()
            try:
                found.append(await one(session, endpoint))
            except (aiohttp.ClientError, OSError, RuntimeError) as error:
                errors.append(str(error)[:200])

    timeout, connector = aiohttp.ClientTimeout(total=300), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await one(session, endpoint)
        began = time.perf_counter()
        await asyncio.gather(*(stream(session) for _ in range(concurrency)))
        seconds = time.perf_counter() - began
    if not found:
        return {"errors": len(errors), "first_error": errors[0]}
    firsts, per_token = sorted(f for f, _, _ in found), [(last - first) / (n - 1) for first, last, n in found if n > 1]
    return {
        "requests": len(found),
        "errors": len(errors),
        "output_tokens_per_s": round(sum(n for _, _, n in found) / seconds, 1),
        "ttft_p50_ms": round(1000 * statistics.median(firsts), 1),
        "ttft_p99_ms": round(1000 * firsts[int(0.99 * (len(firsts) - 1))], 1),
        "tpot_p50_ms": round(1000 * statistics.median(per_token), 2),
    }


def measure(name: str, store: Store, levels: list[int], pairs: int) -> dict[str, Any]:
    """One case: start, then both ways in alternating order."""
    wish, reasons = choose(CASES[name], store, "current", follows=False)
    plan, port = plan_serving(store, "current", wish), free_port()
    before, began = gpu_used_bytes(), time.monotonic()
    process = multiprocessing.get_context("spawn").Process(target=run_gateway, args=(plan, port))
    process.start()
    try:
        gateway, bare = Endpoint(f"http://127.0.0.1:{port}", {}), plan.engines[0]
        wait_for(f"{gateway.url}/ready", _Polled(process), START_TIMEOUT_S)
        start_s = time.monotonic() - began
        ways = {"direct": Endpoint(bare.url, {"Authorization": f"Bearer {bare.api_key}"}), "gateway": gateway}
        results = []
        for level in levels:
            rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
            for pair in range(pairs):
                for way in list(ways) if pair % 2 else reversed(ways):
                    rounds[way].append(asyncio.run(load(ways[way], level)))
            results.append({"concurrency": level, **{way: _median(found) for way, found in rounds.items()}})
            print(name, json.dumps(results[-1]), flush=True)
        used = gpu_used_bytes() - before
    finally:
        process.terminate()
        process.join(30)
    return {"case": name, "why": reasons, "start_s": round(start_s, 1), "gpu_bytes": used, "results": results}


def _median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every figure; counts are added up."""
    good = [found for found in rounds if "requests" in found]
    if not good:
        return rounds[0]
    added = {key: sum(found[key] for found in good) for key in ("requests", "errors")}
    figures = [key for key in good[0] if key not in added]
    return {**added, **{key: round(statistics.median(found[key] for found in good), 2) for key in figures}}


class _Polled:
    """A multiprocessing process, asked as subprocess does it."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def poll(self) -> int | None:
        exitcode: int | None = self._process.exitcode
        return exitcode


def gpu_used_bytes() -> int:
    """Memory in use on the first card that this process may use."""
    argv = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    argv += ["-i", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[0]) << 20


def about(store: Store) -> dict[str, Any]:
    """Date, command, hardware and what was served."""
    import datetime

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {
        "benchmark": "serve_gpu",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks.serve_gpu --store STORE --out RESULT",
        "gpu": gpu,
        "threads": os.cpu_count(),
        "base": store.run("current").manifest.base.get("id"),
        "tokens": {"input": INPUT_TOKENS, "output": OUTPUT_TOKENS},
        "requests_per_stream": ROUNDS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--levels", default="1,8,64,256")
    parser.add_argument("--pairs", type=int, default=2)
    wish = parser.parse_args()
    store = Store(wish.store)
    document, levels = {**about(store), "pairs": wish.pairs, "cases": []}, [int(n) for n in wish.levels.split(",")]
    for name in wish.cases.split(","):
        try:
            document["cases"].append(measure(name, store, levels, wish.pairs))
        except (SystemExit, Exception) as error:  # the other cases still run
            document["cases"].append({"case": name, "error": f"{type(error).__name__}: {error}"[-1500:]})
            print(name, document["cases"][-1]["error"], flush=True)
        wish.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
