"""The GPU suite: from rows to a published run and a served answer, on a real NVIDIA GPU, with one JSON of results each.

usage: python -m tests.gpu.run --phi3-tokenizer FOLDER [--out FOLDER] [--stages NAME,…] [--work FOLDER]

plain      the plain stack (transformers, bitsandbytes, peft, trl) on the rows of the stage phi3, to compare with
phi3       Phi-3-mini's architecture with random weights and the real vocabulary: the preset's 200 steps on rows that
           fill 2048 tokens, then merge, GGUF, verification, publication; memory, speed and export times
smollm2    SmolLM2-135M with real weights: the demo's config through Unsloth, served, evaluated; and a run that is
           interrupted and resumed
warm       the preset for a few steps in the store of phi3, with what is in its caches, up to a served token
fast       what `plan = "fastest"` finds for Phi-3-mini's architecture on this card
dpo        the demo's preferences through Unsloth
llamacpp   the conformance suite of the endpoint (tests/conformance) on llama.cpp with all layers on the GPU
vllm       the same suite on vLLM's CUDA build, which TUNESHIP_VLLM_PYTHON names where it is not in .venv/vllm

Speeds and times have goals that were set for an H100 and are checked on one. Each GPU takes the next stage, with its
share of the processors; CUDA_VISIBLE_DEVICES says which GPUs. What a stage says is in WORK/logs. TUNESHIP_LLAMACPP
names a llama.cpp folder built for the GPU. Prints one closing line with counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_table import Table, tasks, visible_cards
from tests.gpu.conformance import conformance
from tests.gpu.phi3 import phi3, plain
from tests.gpu.plans import dpo, fast, warm
from tests.gpu.smollm2 import smollm2

Result = dict[str, Any]
OF_PHI3 = {"plain", "phi3", "warm", "fast"}
PHI3_GB = 65  # its model, and what the trainer asks for before a run of its length with three kinds of GGUF files
STEPS, LAYERS = 200, 32
# of a stage's result, in that of the whole suite
SUMMED_UP = ["seconds", "date", "checks", "error", "counts", "percent", "against_cpu", "resumed", "against_recipe"]
SUMMED_UP += ["against_plain", "against_plain_bf16", "export_and_verify_s", "all_but_the_steps_s"]
STAGES: dict[str, Callable[[argparse.Namespace], Result]] = {
    "plain": plain,
    "phi3": phi3,
    "warm": warm,
    "smollm2": smollm2,
    "fast": fast,
    "dpo": dpo,
    "llamacpp": partial(conformance, engine="llamacpp"),
    "vllm": partial(conformance, engine="vllm"),
}


def on_all_cards(names: list[str], cards: list[str], wish: argparse.Namespace) -> list[Result]:
    """A process for each stage, which writes its result; one that could not is a failed check. The whole suite has a
    result of its own.
    """
    layers = ["--layers", str(wish.layers)] if wish.layers != LAYERS else []
    steps = ["--phi3-steps", str(wish.phi3_steps)] if wish.phi3_steps != STEPS else []
    more = {name: [*layers, *steps] for name in names}
    if OF_PHI3 & set(names) and not has_model(wish):
        more["model"] = layers
    for name in names:
        result_file(name, wish).unlink(missing_ok=True)  # of an earlier run
    (wish.work / "logs").mkdir(exist_ok=True)
    everything = tasks(tokenizer(wish), wish.out.resolve(), wish.work.resolve())
    wanted = [replace(each, argv=[*each.argv, *more[each.name]]) for each in everything if each.name in more]
    began = time.monotonic()
    Table(wanted, cards, wish.work).run()
    missing: Result = {"error": f"it wrote no result; {wish.work / 'logs'} has what it said"}
    found = {
        name: json.loads(path.read_text()) if path.exists() else {"checks": {f"{name} runs": False}, **missing}
        for name in names
        for path in [result_file(name, wish)]
    }
    if set(names) == set(STAGES):
        whole = {"seconds": round(time.monotonic() - began, 1), "cards": len(cards), **about()}
        whole["stages"] = {name: summed_up(result) for name, result in found.items()}
        result_file("suite", wish).write_text(json.dumps(whole, indent=1) + "\n")
    return list(found.values())


def summed_up(result: Result) -> Result:
    """A stage's checks and main figures; of training, tokens/s."""
    speeds = {key: result[key]["tokens_per_s"] for key in ("result", "bf16") if "tokens_per_s" in result.get(key, {})}
    found = {key: result[key] for key in SUMMED_UP if result.get(key) is not None}
    return found | ({"tokens_per_s": speeds} if speeds else {})


def run_stage(name: str, wish: argparse.Namespace) -> Result:
    """One stage; what goes wrong is a failed check with its reason, so that the other stages still run."""
    started = time.monotonic()
    try:
        found = STAGES[name](wish)
    except Exception as error:  # every stage reports
        found = {"checks": {f"{name} runs": False}, "error": f"{type(error).__name__}: {error}"[-3000:]}
    found |= {"stage": name, "seconds": round(time.monotonic() - started, 1), **about()}
    result_file(name, wish).write_text(json.dumps(found, indent=1) + "\n")
    return found


def result_file(name: str, wish: argparse.Namespace) -> Path:
    """Of a stage, or of all."""
    return Path(wish.out) / f"gpu-{name}.json"


def has_model(wish: argparse.Namespace) -> bool:
    """Whether the model of the stages of Phi-3 is there."""
    return (wish.work / "phi3" / "config.json").exists()


def tokenizer(wish: argparse.Namespace) -> Path:
    """A folder with Phi-3's, absolute."""
    return Path(wish.phi3_tokenizer or wish.work / "phi3").resolve()


def about() -> Result:
    """Date, command, hardware and versions, asked of a child so that this process holds no GPU memory."""
    code = "import json; from trainer.machine import *; print(json.dumps([hardware(), package_versions()]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    hardware, packages = json.loads(done.stdout.splitlines()[-1])
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    words = ["FOLDER" if word.startswith("/") else word for word in sys.argv[1:]]
    command = " ".join(["python -m tests.gpu.run", *words])
    return {"date": date, "command": command, "hardware": hardware, "packages": packages}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--phi3-tokenizer", type=Path, help="a folder with Phi-3's tokenizer files")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--work", type=Path, default=Path("/tmp/tuneship-gpu"))
    parser.add_argument("--phi3-steps", type=int, default=STEPS)
    parser.add_argument("--layers", type=int, default=LAYERS)
    wish = parser.parse_args()
    names = wish.stages.split(",")
    if not set(names) <= set(STAGES):
        parser.error(f"--stages: of {', '.join(STAGES)}")
    if OF_PHI3 & set(names) and not wish.phi3_tokenizer and not has_model(wish):
        parser.error("--phi3-tokenizer is needed (make test-gpu PHI3_TOKENIZER=FOLDER)")
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = os.environ["HF_HUB_OFFLINE"] = "1"
    wish.out.mkdir(parents=True, exist_ok=True)
    wish.work.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(wish.work).free / 1e9
    if "phi3" in names and free_gb < PHI3_GB * wish.layers / LAYERS:
        parser.error(f"the stage phi3 takes {PHI3_GB} GB and {wish.work} has {free_gb:.0f}: --work names another disk")
    if not (cards := visible_cards()):
        parser.error("nvidia-smi shows no GPU")
    results = [run_stage(names[0], wish)] if len(names) == 1 else on_all_cards(names, cards, wish)
    checks = {check: passed for result in results for check, passed in result["checks"].items()}
    for check, passed in checks.items():
        print(f"{'ok' if passed else 'FAILED':6} {check}")
    for result in results:
        if reason := result.get("error"):
            print(reason)
    failed = sum(not passed for passed in checks.values())
    print(f"\n{len(checks) - failed} passed, {failed} failed")
    return 1 if failed or not checks else 0


if __name__ == "__main__":
    sys.exit(main())
