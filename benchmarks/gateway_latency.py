#!/usr/bin/env python3
"""What the gateway adds to a request, in milliseconds: an engine asked directly and through the gateway in turn, by
one client that connects anew for each request as the benchmarks of the engines do.

usage: .venv/server/bin/python benchmarks/gateway_latency.py [--requests 1000] [--keep] [--out FILE]
       [--store FOLDER] [--real] [--quantization NAME] [--threads N]

The engine is benchmarks/stub_engine.py, whose first token comes after 10 ms, because a real one's varies by more than
this; with --real it is what `server serve` chooses for the store's run. With --keep the client keeps its connections
where the server does, as proxies do and clients that read a stream to its end; openai's client ends its own at the
stream's [DONE], llama.cpp after every stream. Prompts have 500 words, answers two tokens. Prints one JSON document:
medians and quartiles of the time to the first token, a bootstrap interval of the ratio of medians, and the gateway's
processor time for a request. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import select
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serve_engines import gpu_name
from benchmarks.serve_overhead import Endpoint, wait_until_ready
from benchmarks.serving import a_store, bootstrap, cpu_s, described, run_gateway
from modelstore import Store
from server.choose import Asked, choose
from server.engine import EngineOptions
from server.llamacpp import LlamaCpp
from server.plan import ServePlan, Wish, plan_serving
from tests.server.conftest import ROOT, free_port

WORDS, WARM_UP = 500, 20


def with_stub(store: Path) -> ServePlan:
    """What `server serve` would run, with the stub in place of its engines."""
    plan = plan_serving(Store(store), "current", Wish(LlamaCpp(), EngineOptions()))
    argv = [sys.executable, str(ROOT / "benchmarks" / "stub_engine.py"), "--ttft-ms", "10", "--itl-ms", "5"]
    engines = [
        replace(each, argv=[*argv, "--port", str(each.port)], probes=replace(each.probes, template_path=""))
        for each in plan.engines
    ]
    return replace(plan, engines=tuple(engines))


def with_engine(wish: argparse.Namespace, store: Path) -> ServePlan:
    """What `server serve` runs."""
    asked = Asked("llamacpp", quantization=wish.quantization, threads=wish.threads)
    return plan_serving(Store(store), "current", choose(asked, Store(store), "current", follows=False)[0])


class Client:
    """Asks one endpoint, one request after the other."""

    def __init__(self, endpoint: Endpoint, keeps: bool) -> None:
        self._endpoint, self._keeps = endpoint, keeps
        self._connection = http.client.HTTPConnection(endpoint.url.removeprefix("http://"))

    def first_token_ms(self) -> float:
        """Of one request, which is read to its end."""
        prompt = " ".join([str(random.getrandbits(40)), *random.choices(("harbour", "storm", "letter"), k=WORDS)])
        body = {"model": "tuned", "messages": [{"role": "user", "content": prompt}], "max_tokens": 2, "stream": True}
        body |= {"ignore_eos": True}
        headers = {"Content-Type": "application/json", **self._endpoint.headers}
        began = time.perf_counter()
        if self._connection.sock and (not self._keeps or select.select([self._connection.sock], [], [], 0)[0]):
            self._connection.close()  # what can be read between two answers is its end
        try:
            reply = self._asked(body, headers)
        except ConnectionError:  # the end of one that was kept comes in this moment
            if not self._keeps:
                raise
            self._connection.close()
            reply = self._asked(body, headers)
        while not _is_token(reply.readline()):
            if reply.isclosed():
                raise SystemExit(f"error: no token came, status {reply.status}")
        seconds = time.perf_counter() - began
        reply.read()
        return 1000 * seconds

    def _asked(self, body: dict[str, Any], headers: dict[str, str]) -> http.client.HTTPResponse:
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return self._connection.getresponse()


def _is_token(line: bytes) -> bool:
    # that of a model which was not trained may be a part of a character, whose content is empty
    return b'"choices":[{' in line.replace(b" ", b"") and b'"role"' not in line


def measure(plan: ServePlan, requests: int, keeps: bool) -> dict[str, Any]:
    """Both ways in turn."""
    port, used_s = free_port(), 0.0
    process = multiprocessing.get_context("spawn").Process(target=run_gateway, args=(plan, port), daemon=True)
    process.start()
    try:
        engine, gateway = plan.engines[0], Endpoint(f"http://127.0.0.1:{port}", {})
        direct = Endpoint(engine.url, {"Authorization": f"Bearer {engine.api_key}"})
        wait_until_ready(gateway.url)
        clients = {"direct": Client(direct, keeps), "gateway": Client(gateway, keeps)}
        seen: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(-WARM_UP, requests):
            for name, client in sorted(clients.items(), reverse=bool(number % 2)):
                before = cpu_s(int(process.pid or 0))
                lasted = client.first_token_ms()
                if number >= 0:
                    seen[name].append(lasted)
                    used_s += cpu_s(int(process.pid or 0)) - before
    finally:
        process.terminate()
        process.join(20)
    pairs = list(zip(seen["gateway"], seen["direct"], strict=True))
    medians = {name: statistics.median(lasted) for name, lasted in seen.items()}
    return {
        "requests": requests,
        "ttft_ms": {name: round(each, 3) for name, each in medians.items()},
        "ttft_ms_quartiles": {name: _quartiles(lasted) for name, lasted in seen.items()},
        "added_ms": round(medians["gateway"] - medians["direct"], 3),
        "ratio": round(_of_medians(pairs), 4),
        "ratio_interval": bootstrap(pairs, _of_medians),
        "cpu_ms_of_a_request": round(1000 * used_s / requests, 3),
    }


def _quartiles(lasted: list[float]) -> list[float]:
    return [round(each, 3) for each in statistics.quantiles(lasted, n=4)]


def _of_medians(pairs: Sequence[tuple[float, float]]) -> float:
    through, direct = zip(*pairs, strict=True)
    return statistics.median(through) / statistics.median(direct)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--keep", action="store_true", help="keep connections where the server does")
    parser.add_argument("--store", type=Path, help="default: one with the embedded small model")
    parser.add_argument("--real", action="store_true", help="llama.cpp in place of the stub")
    parser.add_argument("--quantization", help="of the GGUF file; default: the run's own choice")
    parser.add_argument("--threads", type=int, help="of llama.cpp; default: what the server chooses")
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    wish = parser.parse_args()
    with a_store(wish.store) as store:
        document = described("what the gateway adds to a request", store)
        plan = with_engine(wish, store) if wish.real else with_stub(store)
        document |= {"gpu": gpu_name(), **measure(plan, wish.requests, wish.keep)}
    wish.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
