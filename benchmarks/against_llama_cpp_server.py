#!/usr/bin/env python3
"""Our server beside `python -m llama_cpp.server` with the same GGUF file: concurrent streams, in alternating rounds.

usage: .venv/server/bin/python benchmarks/against_llama_cpp_server.py --theirs PYTHON [--rounds 5] [--out FILE]

PYTHON is that of an environment with llama-cpp-python[server]. It runs as it comes, and once more with
interrupt_requests off, which is what cuts its streams; same threads and the same OpenMP setting as ours. Only tokens of
streams that end with a finish_reason count. Writes one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving import a_store, described, server, wait_for
from modelstore import Store
from modelstore.machine import cpu_threads
from server.engine import OPENMP_SPINS
from tests.server.conftest import free_port

OURS = "ours"


@contextmanager
def theirs(python: str, gguf: Path, *options: str) -> Iterator[str]:
    """`python -m llama_cpp.server`, ready; its address."""
    port = free_port()
    argv = [python, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port), "--n_ctx", "2048"]
    argv += ["--n_threads", str(cpu_threads()), "--verbose", "false", *options]
    environment = {**os.environ, "GOMP_SPINCOUNT": OPENMP_SPINS}
    silent = subprocess.DEVNULL
    with subprocess.Popen(argv, env=environment, stdout=silent, stderr=silent) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/v1/models", process, 300)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


async def stream(session: aiohttp.ClientSession, url: str, tokens: int) -> tuple[int, bool]:
    """Pieces of text that came, and whether the stream ended as it should."""
    prompt = f"{random.getrandbits(60):015d}: tell a long story about a harbour, please."
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "stream": True}
    pieces, is_complete = 0, False
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            async for line in reply.content:
                if not line.startswith(b"data: {"):
                    continue
                choices = json.loads(line[6:]).get("choices") or [{}]
                pieces += bool(choices[0].get("delta", {}).get("content"))
                is_complete = is_complete or bool(choices[0].get("finish_reason"))
    except (aiohttp.ClientError, OSError):
        is_complete = False
    return pieces, is_complete


async def one_round(url: str, streams: int, tokens: int) -> dict[str, Any]:
    """`streams` at once."""
    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        began = time.monotonic()
        ended = await asyncio.gather(*(stream(session, url, tokens) for _ in range(streams)))
        seconds = time.monotonic() - began
    whole = [pieces for pieces, is_complete in ended if is_complete]
    return {"completed": len(whole), "tokens": sum(whole), "s": round(seconds, 2), "load": round(os.getloadavg()[0], 1)}


def summed(rounds: list[dict[str, Any]], streams: int) -> dict[str, Any]:
    """Streams completed of all, and the median of completed tokens a second."""
    rates = [entry["tokens"] / entry["s"] for entry in rounds]
    completed = sum(entry["completed"] for entry in rounds)
    rate = round(statistics.median(rates), 1)
    return {"completed": completed, "of": streams * len(rounds), "tokens_per_s": rate, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", required=True, metavar="PYTHON")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    wish = parser.parse_args()
    with a_store(wish.store) as store, ExitStack() as servers:
        document = described("the same GGUF file behind ours and behind llama_cpp.server", store)
        gguf = Store(store).run("current").artifact("gguf").path
        document["packages"]["llama-cpp-python"] = version_of(wish.theirs)
        document |= {"streams": wish.streams, "tokens_of_each": wish.tokens, "file": gguf.name}
        urls = {
            OURS: servers.enter_context(server(store)).url,
            "llama_cpp.server": servers.enter_context(theirs(wish.theirs, gguf)),
            "llama_cpp.server, interrupt_requests off": servers.enter_context(
                theirs(wish.theirs, gguf, "--interrupt_requests", "false")
            ),
        }
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
        for turn in range(-1, wish.rounds):
            for name in urls if turn % 2 else reversed(urls):
                seen = asyncio.run(one_round(urls[name], wish.streams, wish.tokens if turn >= 0 else 8))
                if turn >= 0:  # the first one warms up
                    rounds[name].append(seen)
                    print(turn, name, seen, file=sys.stderr, flush=True)
            if turn >= 0:  # what was seen stays, should it be ended
                document["servers"] = {name: summed(entries, wish.streams) for name, entries in rounds.items()}
                wish.out.write_text(json.dumps(document, indent=1) + "\n")


def version_of(python: str) -> str:
    """Of the llama-cpp-python in that environment."""
    code = "import importlib.metadata as m; print(m.version('llama-cpp-python'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
