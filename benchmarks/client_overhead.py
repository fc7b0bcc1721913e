#!/usr/bin/env python3
"""How exactly `bench` measures an engine of known timing, and how many streamed tokens a second its client can take in.

usage: benchmarks/client_overhead.py [--out benchmarks/results/client-overhead.json]     in the clients' environment
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clients.bench import BenchWish, run_bench  # noqa: E402
from clients.endpoint import Endpoint  # noqa: E402
from clients.load import Load  # noqa: E402


@contextmanager
def stub(ttft_ms: float, itl_ms: float) -> Iterator[str]:
    """The stub engine as a process of its own; yields its address."""
    argv = [
        sys.executable,
        str(ROOT / "benchmarks" / "stub_engine.py"),
        "--ttft-ms",
        str(ttft_ms),
        "--itl-ms",
        str(itl_ms),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def accuracy(streams: int, ttft_ms: float, itl_ms: float) -> dict[str, Any]:
    """Median TTFT and mean ITL as `bench` measures them, against what the engine wrote down."""
    with stub(ttft_ms, itl_ms) as url:
        wish = BenchWish(Load("stub", 64, 64), (streams,), requests=max(40, 2 * streams))
        (row,) = asyncio.run(run_bench(Endpoint(f"{url}/v1"), wish))
        with urllib.request.urlopen(f"{url}/measured") as answer:
            real = json.load(answer)
    counted = row["completed"]
    true_ttft = statistics.median(real["ttft_ms"][-counted:])
    true_itl = statistics.fmean(real["itl_ms"][-counted * 63 :])
    return {
        "streams": streams,
        "ttft_ms": {
            "engine": round(true_ttft, 3),
            "bench": row["ttft_ms_p50"],
            "off": _off(row["ttft_ms_p50"], true_ttft),
        },
        "itl_ms": {
            "engine": round(true_itl, 3),
            "bench": row["itl_ms_mean"],
            "off": _off(row["itl_ms_mean"], true_itl),
        },
        "failed": row["failed"],
    }


def _off(measured: float, real: float) -> float:
    return round(measured / real - 1, 4)


def capacity(streams: int) -> dict[str, Any]:
    """Streamed tokens for each second of processor time of the client, from an engine that never waits."""
    with stub(0, 0) as url:
        wish = BenchWish(Load("stub", 64, 256), (streams,), requests=16 * streams)
        began, cpu = time.perf_counter(), time.process_time()
        (row,) = asyncio.run(run_bench(Endpoint(f"{url}/v1"), wish))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tokens = (row["completed"] + streams) * 256
    return {"streams": streams, "tokens_per_cpu_s": round(tokens / cpu), "tokens_per_s": round(tokens / seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    wish = parser.parse_args()
    result = {
        "command": "benchmarks/client_overhead.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {"processors": os.cpu_count(), "machine": platform.machine(), "system": platform.platform()},
        "packages": {"python": platform.python_version(), "openai": version("openai")},
        "accuracy": [accuracy(1, 100, 10), accuracy(1, 300, 20), accuracy(64, 500, 60), accuracy(64, 500, 100)],
        "capacity": [capacity(1), capacity(64)],
    }
    text = json.dumps(result, indent=1)
    if wish.out:
        wish.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
