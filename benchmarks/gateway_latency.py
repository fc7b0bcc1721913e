#!/usr/bin/env python3
"""What the gateway adds to a request, in milliseconds: an engine that answers after 10 ms, asked directly and through
the gateway in turn, by one client that connects anew for each request as the benchmarks of the engines do.

usage: .venv/server/bin/python benchmarks/gateway_latency.py [--requests 1000] [--out FILE]

A real engine's first token varies by more than this. The engine is benchmarks/stub_engine.py, prompts have some 500
words, answers two tokens that are 5 ms apart. Prints one JSON document: medians and quartiles of the time to the first
token, and the gateway's processor time for a request. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serve_overhead import Endpoint, wait_until_ready
from benchmarks.serving import a_store, cpu_s, described, run_gateway
from modelstore import Store
from server.engine import EngineOptions
from server.llamacpp import LlamaCpp
from server.plan import ServePlan, Wish, plan_serving
from tests.server.conftest import ROOT, free_port

WORDS = 500


def with_stub(store: Path) -> ServePlan:
    """What `server serve` would run, with the stub in place of its engines."""
    plan = plan_serving(Store(store), "current", Wish(LlamaCpp(), EngineOptions()))
    argv = [sys.executable, str(ROOT / "benchmarks" / "stub_engine.py"), "--ttft-ms", "10", "--itl-ms", "5"]
    engines = [
        replace(each, argv=[*argv, "--port", str(each.port)], probes=replace(each.probes, template_path=""))
        for each in plan.engines
    ]
    return replace(plan, engines=tuple(engines))


def first_token_ms(endpoint: Endpoint) -> float:
    """Of one request, which is read to its end."""
    prompt = " ".join([str(random.getrandbits(40)), *random.choices(("harbour", "storm", "letter"), k=WORDS)])
    body = {"model": "tuned", "messages": [{"role": "user", "content": prompt}], "max_tokens": 2, "stream": True}
    began = time.perf_counter()
    connection = http.client.HTTPConnection(endpoint.url.removeprefix("http://"))
    headers = {"Content-Type": "application/json", **endpoint.headers}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    while b'"content": "' not in reply.readline():
        if reply.isclosed():
            raise SystemExit(f"error: no token came, status {reply.status}")
    seconds = time.perf_counter() - began
    reply.read()
    connection.close()
    return 1000 * seconds


def measure(plan: ServePlan, requests: int) -> dict[str, Any]:
    """Both ways in turn."""
    port, used_s = free_port(), 0.0
    process = multiprocessing.get_context("spawn").Process(target=run_gateway, args=(plan, port), daemon=True)
    process.start()
    try:
        engine, gateway = plan.engines[0], Endpoint(f"http://127.0.0.1:{port}", {})
        direct = Endpoint(engine.url, {"Authorization": f"Bearer {engine.api_key}"})
        wait_until_ready(gateway.url)
        seen: dict[str, list[float]] = {"direct": [], "gateway": []}
        for number in range(-20, requests):
            for name, endpoint in sorted({"direct": direct, "gateway": gateway}.items(), reverse=bool(number % 2)):
                before = cpu_s(int(process.pid or 0))
                lasted = first_token_ms(endpoint)
                if number >= 0:
                    seen[name].append(lasted)
                    used_s += cpu_s(int(process.pid or 0)) - before
    finally:
        process.terminate()
        process.join(20)
    medians = {name: statistics.median(lasted) for name, lasted in seen.items()}
    return {
        "requests": requests,
        "ttft_ms": {name: round(each, 3) for name, each in medians.items()},
        "ttft_ms_quartiles": {name: _quartiles(lasted) for name, lasted in seen.items()},
        "added_ms": round(medians["gateway"] - medians["direct"], 3),
        "cpu_ms_of_a_request": round(1000 * used_s / requests, 3),
    }


def _quartiles(lasted: list[float]) -> list[float]:
    return [round(each, 3) for each in statistics.quantiles(lasted, n=4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    wish = parser.parse_args()
    with a_store(None) as store:
        document = described("what the gateway adds to a request", store)
        document |= measure(with_stub(store), wish.requests)
    wish.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
