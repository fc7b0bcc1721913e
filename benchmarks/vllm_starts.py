#!/usr/bin/env python3
"""How long vLLM takes to be ready with what it compiled in its cache, and what of it is importing.

usage: .venv/server/bin/python benchmarks/vllm_starts.py --store FOLDER --out RESULT.json [--run current] [--rounds 3]

Base and tuned side by side, merged weights, as `server serve` starts them. One start fills the caches and is not
counted. Then, in each round: the engine's process started anew, forked (the kit's default), and forked with bytecode of
all that is imported, as the kit's image keeps it and most environments have it. Writes the file after each start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serve_engines import asked, gpu_name, served, versions
from benchmarks.serving import described
from modelstore import Store
from server.vllm import vllm_python

SPAWN, FORK = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
IMPORT = "import vllm.entrypoints.openai.api_server"


def start_s(store: Path, run: str, environment: dict[str, str]) -> float:
    """Seconds until both models generate."""
    with mock.patch.dict(os.environ, environment), served(asked("vllm-merged"), Store(store), run) as running:
        return round(running.start_s, 1)


def import_s(environment: dict[str, str]) -> float:
    """Seconds of a Python that imports vLLM's server and ends."""
    began = time.monotonic()
    subprocess.run([str(vllm_python()), "-c", IMPORT], env={**os.environ, **environment}, check=True)
    return round(time.monotonic() - began, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", default="current")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    wish = parser.parse_args()
    document = described("starts of vLLM with what it compiled in its cache", wish.store, wish.run)
    document |= {"packages": document["packages"] | versions(), "gpu": gpu_name()}
    kinds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        written = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        ways = {"started anew": SPAWN, "forked": FORK, "forked, with bytecode": FORK | written}
        document["first_start_s"] = start_s(wish.store, wish.run, FORK | written)
        kinds += [{"engine_process": name, "start_s": [], "import_s": []} for name in ways]
        for number in range(wish.rounds):
            for kind in reversed(kinds) if number % 2 else kinds:
                environment = ways[kind["engine_process"]]
                kind["import_s"].append(import_s(environment))
                kind["start_s"].append(start_s(wish.store, wish.run, environment))
                wish.out.write_text(json.dumps(document | {"starts": kinds}, indent=1) + "\n")
                print(json.dumps(kind), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
