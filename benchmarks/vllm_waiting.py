#!/usr/bin/env python3
"""vLLM on processors: how its OpenMP threads wait for one another, when one of base and tuned is asked, and both.

usage: .venv/server/bin/python benchmarks/vllm_waiting.py --store FOLDER --out RESULT.json [--run current] [--rounds 2]
       [--seconds 25]

Merged weights in two processes, as `server serve` starts them; one stream for each model that is asked, 48 tokens out.
The ways of waiting in turn, each round the other way about. Writes the file after each start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serve_engines import versions
from benchmarks.serving import described, server
from benchmarks.serving_load import Load, Target, run
from server.engine import OPENMP_SPINS

WORDS, OUTPUT_TOKENS, RAMP_S = 12, 48, 3.0
OWN = {"GOMP_SPINCOUNT": ""}  # no number: libgomp takes its own
WAYS: dict[str, dict[str, str]] = {
    "libgomp's own": OWN,
    f"GOMP_SPINCOUNT={OPENMP_SPINS}": {},
    "OMP_WAIT_POLICY=PASSIVE": OWN | {"OMP_WAIT_POLICY": "PASSIVE"},
}


def tokens_per_s(url: str, models: tuple[str, ...], seconds: float) -> float:
    """Of all models together."""
    load = Load(1, WORDS, OUTPUT_TOKENS, RAMP_S, seconds)
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: run(Target(url, {}, model), load), models))
    return round(sum(each["output_tokens_per_s"] for each in found), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", default="current")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("--out", type=Path, required=True)
    wish = parser.parse_args()
    document = described("vLLM's threads waiting for one another on processors", wish.store, wish.run)
    document |= {"packages": document["packages"] | versions(), "output_tokens": OUTPUT_TOKENS}
    rows: list[dict[str, Any]] = [{"waiting": name, "one_tokens_per_s": [], "both_tokens_per_s": []} for name in WAYS]
    for number in range(wish.rounds):
        for row in reversed(rows) if number % 2 else rows:
            with (
                mock.patch.dict(os.environ, WAYS[row["waiting"]]),
                server(wish.store, wish.run, "--engine", "vllm", "--weights", "merged") as running,
            ):
                row["one_tokens_per_s"].append(tokens_per_s(running.url, ("tuned",), wish.seconds))
                row["both_tokens_per_s"].append(tokens_per_s(running.url, ("tuned", "base"), wish.seconds))
            wish.out.write_text(json.dumps(document | {"ways": rows}, indent=1) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
