#!/usr/bin/env python3
"""Whether `bench` and guidellm measure the same on the same server, in alternating rounds.

usage: benchmarks/guidellm_agreement.py GUIDELLM TOKENIZER_FOLDER [--url URL --model tuned --server TEXT] [--out FILE]

GUIDELLM is its command in an environment of its own; without --url an engine of known timing is measured. To be run in
the clients' environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from client_overhead import stub  # noqa: E402

from clients.bench import BenchWish, run_bench  # noqa: E402
from clients.endpoint import Endpoint  # noqa: E402
from clients.load import Load  # noqa: E402

PROMPT, OUTPUT = 128, 32
# guidellm's name, ours
METRICS = {
    "time_to_first_token_ms": "ttft_ms_p50",
    "inter_token_latency_ms": "tpot_ms_p50",
    "request_latency": "e2e_s_p50",
}


def ours(url: str, model: str, streams: int, requests: int, prompt_tokens: int) -> dict[str, float]:
    """Medians of `bench`; its TPOT is what guidellm calls inter-token latency."""
    wish = BenchWish(Load(model, prompt_tokens, OUTPUT), (streams,), requests=requests)
    (row,) = asyncio.run(run_bench(Endpoint(url), wish))
    return {name: row[field] for name, field in METRICS.items()}


def theirs(command: str, tokenizer: str, url: str, model: str, streams: int, requests: int) -> dict[str, float]:
    """Medians of guidellm over its successful requests, and its prompts' tokens as the server counts them.

    Each call has a seed of its own: prompts that occurred before would come from the server's prefix cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        wish = {
            "--backend": f"kind=openai_http,target={url.removesuffix('/v1')},model={model}",
            "--profile": f"kind=concurrent,streams={streams}",
            "--constraint": f"kind=max_requests,count={requests}",
            "--tokenizer": f"kind=huggingface_auto,model={tokenizer}",
            "--data": f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={OUTPUT}",
            "--seed": f"kind=static,value={random.getrandbits(31)}",
            "--output": f"kind=json,path={out}",
        }
        argv = [command, "run", *(part for pair in wish.items() for part in pair), "--disable-console"]
        subprocess.run(argv, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True)
        metrics = json.loads(out.read_text())["benchmarks"][0]["metrics"]
    wanted = [*METRICS, "prompt_token_count"]
    return {name: metrics[name]["successful"]["median"] for name in wanted}


def compared(wish: argparse.Namespace, url: str, model: str, streams: int) -> dict[str, Any]:
    """Medians over the rounds, and how far ours is off theirs. Both send prompts of as many tokens."""
    rounds: dict[str, list[dict[str, float]]] = {"bench": [], "guidellm": []}
    requests = max(24, 8 * streams)
    for _ in range(wish.rounds):
        rounds["guidellm"].append(theirs(wish.guidellm, wish.tokenizer, url, model, streams, requests))
        prompt_tokens = round(rounds["guidellm"][-1]["prompt_token_count"])
        rounds["bench"].append(ours(url, model, streams, requests, prompt_tokens))
    row: dict[str, Any] = {"streams": streams, "rounds": wish.rounds, "requests": requests}
    row |= {"prompt_tokens": prompt_tokens, "load_average": round(os.getloadavg()[0], 1)}
    for name in METRICS:
        us, them = (statistics.median(one[name] for one in rounds[tool]) for tool in ("bench", "guidellm"))
        row[name] = {"bench": round(us, 3), "guidellm": round(them, 3), "off": round(us / them - 1, 4)}
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("guidellm")
    parser.add_argument("tokenizer")
    parser.add_argument("--url")
    parser.add_argument("--model", default="stub")
    parser.add_argument("--server", default="the kit's server", help="what is behind --url, for the result")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", default="1,4,8")
    parser.add_argument("--out", type=Path)
    wish = parser.parse_args()
    version = subprocess.check_output([wish.guidellm, "--version"], text=True).split()[-1]
    with nullcontext(wish.url) if wish.url else stub(150, 20) as where:
        url = f"{where.removesuffix('/v1')}/v1"
        rows = [compared(wish, url, wish.model, int(streams)) for streams in wish.streams.split(",")]
    result = {
        "command": f"benchmarks/guidellm_agreement.py, {PROMPT} tokens in, {OUTPUT} out",
        "server": wish.server if wish.url else "benchmarks/stub_engine.py, 150 ms, 20 ms",
        "figures": f"medians of {wish.rounds} alternating rounds' medians",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {"processors": os.cpu_count(), "system": platform.platform()},
        "packages": {"python": platform.python_version(), "guidellm": version},
        "rows": rows,
    }
    text = json.dumps(result, indent=1)
    if wish.out:
        wish.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
