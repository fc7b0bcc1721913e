#!/usr/bin/env python3
"""Memory of base and tuned side by side, for each engine and kind of weights, after both have answered.

usage: .venv/server/bin/python benchmarks/serve_memory.py [--out FILE] [--only llamacpp/gguf …]

The models are the embedded small one and a random adapter on it. Needs .venv/trainer, and .venv/vllm for vLLM's rows.
Memory is PSS, added over all processes of the server. Writes one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving import described, family, memory_mb, server
from tests.server.conftest import ROOT, RUN_ID, build_store

SETUPS = ("llamacpp/gguf", "vllm/merged", "vllm/adapter")


def measure(store: Path, engine: str, weights: str) -> dict[str, Any]:
    """Both models answer 64 tokens, then the processes are looked at."""
    with server(store, "--engine", engine, "--weights", weights) as running:
        for model in ("tuned", "base"):
            body = {"model": model, "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 64}
            request = urllib.request.Request(f"{running.url}/v1/chat/completions", json.dumps(body).encode())
            urllib.request.urlopen(request, timeout=300).close()
        gateway, *engines = family(running.pid)
        return {
            "engine": engine,
            "weights": weights,
            "engine_processes": len(engines),
            "gateway_mb": round(memory_mb(gateway), 1),
            "engines_mb": round(sum(map(memory_mb, engines)), 1),
            "start_s": round(running.start_s, 1),
            "load": round(os.getloadavg()[0], 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETUPS, default=SETUPS)
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    wish = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stores = {"llamacpp": Path(folder) / "gguf", "vllm": Path(folder) / "hf"}
        build_store(stores["llamacpp"])
        if any(setup.startswith("vllm") for setup in wish.only):
            argv = [".venv/trainer/bin/python", "tests/conformance/make_store.py", str(stores["vllm"]), RUN_ID]
            subprocess.run(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        document = described("memory of base and tuned side by side", stores["llamacpp"])
        rows = []
        for setup in wish.only:
            engine, weights = setup.split("/")
            rows.append(measure(stores[engine], engine, weights))
            print(rows[-1], file=sys.stderr, flush=True)
            wish.out.write_text(json.dumps(document | {"rows": rows}, indent=1) + "\n")  # what was seen stays


if __name__ == "__main__":
    main()
