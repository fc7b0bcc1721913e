#!/usr/bin/env python3
"""One run on one machine behind every engine and every kind of weights: 512 tokens in, 128 out, at several numbers of
streams, asked directly and through the gateway.

usage: python benchmarks/serve_engines.py --store FOLDER [--run current] --out RESULT.json [--cases NAME,…]
       [--streams 1,8,64,256] [--rounds 1] [--slots N] [--threads N] [--seconds FACTOR] [--pause S] [--apart]
       [--label TEXT] [--once]

A case is an engine and its weights: llamacpp-BF16, llamacpp-Q8_0, …, vllm-merged, vllm-adapter, vllm-gguf-Q8_0. Base
and tuned are served side by side, as `server serve` does it, with contexts that just hold a request; tuned is asked.
Figures are of a window in which every stream is at work. vLLM is started twice: the second start has the cache of
the first. A case that fails is reported with its reason. The server's memory is what nvidia-smi shows for the card
of CUDA_VISIBLE_DEVICES; without a GPU it is the PSS of all its processes.
With --apart each way of asking has a server to itself, which shows what becomes of it when it is asked in that way
only. `serve --for` chooses by these figures: tools/measured.py takes them over.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving import described, family, memory_mb, run_gateway
from benchmarks.serving_load import Load, Target, fitted_words, run
from modelstore import Store
from server.choose import Asked, choose
from server.llamacpp import llamacpp_program
from server.memory import gpu_memory_bytes
from server.plan import Wish, plan_serving
from server.vllm import vllm_python

START_TIMEOUT_S = 480
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 128
PATHS = ("direct", "gateway")
CONTEXT = 768  # a request and what the chat template and uneven words add
# streams -> seconds before the window, and of the window; many streams on few slots wait long for their first token
Windows = dict[int, tuple[float, float]]
ON_GPU: Windows = {1: (1.5, 6), 8: (2, 8), 64: (6, 12), 256: (12, 16)}
ON_CPU: Windows = {1: (8, 40), 4: (20, 60), 8: (40, 80)}
GPU_CASES = "llamacpp-BF16,llamacpp-Q8_0,llamacpp-Q4_K_M,vllm-merged,vllm-adapter,vllm-gguf-Q8_0"
VLLM_VERSION = "from importlib.metadata import *; print(version(packages_distributions()['vllm'][0]))"
CPU_CASES = "llamacpp-Q8_0,llamacpp-Q4_K_M,vllm-merged,vllm-adapter"


@dataclass(frozen=True)
class Running:
    """A server that is ready: its engine for the tuned model, its gateway, and how long the start took."""

    direct: Target
    gateway: Target
    start_s: float
    processes: int
    pid: int
    wish: Wish


def asked(case: str, slots: int | None = None, threads: int | None = None) -> Asked:
    """What a user would say on the command line for this case."""
    engine, _, rest = case.partition("-")
    kind, _, quantization = rest.partition("-")
    wanted = Asked(engine, slots=slots, threads=threads, context_tokens=CONTEXT)
    if engine == "llamacpp":
        return replace(wanted, quantization=rest)
    return replace(wanted, weights=kind, quantization=quantization or None)


@contextmanager
def served(wanted: Asked, store: Store, ref: str) -> Iterator[Running]:
    """The run behind what was asked for, in a process of its own."""
    from server.engine import free_port

    wish, _ = choose(wanted, store, ref, follows=False)
    plan, port = plan_serving(store, ref, wish), free_port()
    began = time.monotonic()
    process = multiprocessing.get_context("spawn").Process(target=run_gateway, args=(plan, port))
    process.start()
    try:
        while time.monotonic() - began < START_TIMEOUT_S and process.is_alive():
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise RuntimeError(f"not ready; the server ended with {process.exitcode}")
        engine = plan.engines[0]
        direct = Target(engine.url, {"Authorization": f"Bearer {engine.api_key}"}, engine.models[0].names[0])
        gateway = Target(f"http://127.0.0.1:{port}", {})
        assert process.pid
        yield Running(direct, gateway, time.monotonic() - began, len(plan.engines), process.pid, wish)
    finally:
        process.terminate()
        process.join(40)
        process.kill()


def gpu_memory_mib() -> int:
    """In use on the card that this program may use; 0 without one."""
    return int(_card("memory.used") or 0)


def gpu_name() -> str:
    """As its driver says it; empty without one."""
    return _card("name")


def _card(what: str) -> str:
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    argv = ["nvidia-smi", "-i", card, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def measure(case: str, wish: argparse.Namespace) -> dict[str, Any]:
    """All loads of one case."""
    store, row = Store(wish.store), {"case": case, "loads": []}
    wanted = asked(case, wish.slots, wish.threads)
    idle = gpu_memory_mib()
    if case.startswith("vllm") and wish.twice:
        with served(wanted, store, wish.run) as running:
            row["first_start_s"] = round(running.start_s, 1)
    for paths in ([path] for path in PATHS) if wish.apart else [PATHS]:
        with served(wanted, store, wish.run) as running:
            row |= {"start_s": round(running.start_s, 1), "processes": running.processes}
            row |= {"slots": running.wish.options.slots, "threads": running.wish.options.threads}
            words = fitted_words(running.gateway, PROMPT_TOKENS)
            if gpu_memory_bytes():
                row["memory_mib"] = gpu_memory_mib() - idle
            else:
                row["memory_mib"] = round(sum(map(memory_mb, family(running.pid))))
            for path, load in asked_in_rounds(wish, paths, words):
                row["loads"].append({"path": path, **figures(getattr(running, path), load)})
                print(case, json.dumps(row["loads"][-1]), file=sys.stderr, flush=True)
    return row


def asked_in_rounds(wish: argparse.Namespace, paths: Sequence[str], words: int) -> Iterator[tuple[str, Load]]:
    """Every number of streams in every round, the order of `paths` in turn."""
    for number in range(wish.rounds):
        for streams in wish.streams:
            ramp_s, window_s = (seconds * wish.seconds for seconds in loads()[streams])
            load = Load(streams, words, OUTPUT_TOKENS, ramp_s, window_s, wish.pause, pause_seed=number)
            yield from ((path, load) for path in sorted(paths, reverse=bool(number % 2)))


def figures(target: Target, load: Load) -> dict[str, Any]:
    """Of one load, or why there are none: more streams than the server takes, say. The others are measured."""
    try:
        return run(target, load)
    except SystemExit as error:
        return {"streams": load.streams, "error": str(error)[:300]}


def loads() -> Windows:
    """What this machine is asked."""
    return ON_GPU if gpu_memory_bytes() else ON_CPU


def versions() -> dict[str, str]:
    """Of the engines that are asked."""
    argv = {"llama.cpp": [*llamacpp_program(), "--version"]}
    if python := vllm_python():
        argv["vllm"] = [python, "-c", VLLM_VERSION]
    found = {}
    for name, words in argv.items():
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if stated := re.search(r"^.*\d.*$", done.stdout + done.stderr, re.MULTILINE):
            found[name] = stated[0].strip() if done.returncode == 0 else "unknown"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", default="current")
    parser.add_argument("--cases", default=GPU_CASES if gpu_memory_bytes() else CPU_CASES)
    parser.add_argument("--streams", default=",".join(map(str, loads())))
    parser.add_argument("--slots", type=int, help="default: what the server chooses")
    parser.add_argument("--threads", type=int, help="of the engine; default: what the server chooses")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="factor for the lengths of all windows")
    parser.add_argument("--pause", type=float, default=0.0, help="most seconds between an answer and the next request")
    parser.add_argument("--apart", action="store_true", help="a server of its own for each way of asking")
    parser.add_argument("--label", default="", help="what sets this engine apart from the kit's own, as: compiled here")
    parser.add_argument("--once", dest="twice", action="store_false", help="start vLLM once only")
    parser.add_argument("--out", type=Path, required=True)
    wish = parser.parse_args()
    wish.streams = [int(one) for one in wish.streams.split(",")]
    if not set(wish.streams) <= set(loads()):
        parser.error(f"--streams: of {', '.join(map(str, loads()))} on this machine")
    document = described("base and tuned behind each engine and kind of weights", wish.store, wish.run)
    document["packages"] |= versions()
    document |= {"gpu": gpu_name(), "prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    document |= {"context_tokens": CONTEXT, "label": wish.label, "cases": []}
    for case in wish.cases.split(","):
        try:
            document["cases"].append(measure(case, wish))
        except Exception as error:  # the other cases are measured all the same
            document["cases"].append({"case": case, "error": f"{type(error).__name__}: {error}"[:1000]})
            print(case, error, file=sys.stderr, flush=True)
        wish.out.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(any("error" in case for case in document["cases"]))


if __name__ == "__main__":
    main()
