"""What a config line changes: the plan that the trainer finds fastest for Phi-3-mini, and learning from preferences."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from tests.gpu.phi3 import ROOT, model_folder, preset, rows_file, train


def fast(wish: argparse.Namespace) -> dict[str, Any]:
    """`plan = "fastest"` on the rows of the stage phi3: what was tried, what was chosen, and two steps of it."""
    store = wish.work / "fast-store"
    config = preset(
        "phi3-mini-fast",
        wish.work / "fast.toml",
        base=f'"{model_folder(wish)}"',
        path=f'"{rows_file(wish)}"',
        questions=None,
        max_steps=str(wish.phi3_steps),
    )
    argv = [sys.executable, "-m", "trainer", "train", "--config", str(config), "--store", str(store)]
    done = subprocess.run([*argv, "--dry-run", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    tried = [json.loads(path.read_text()) for path in (store / "cache" / "plans").glob("*.json")]
    candidates = [each for one in tried for each in one["candidates"]]
    found = {"candidates": candidates, "dry_run": json.loads(done.stdout)}
    checks = {"fast: plans were tried": bool(candidates)}
    path = wish.out / "gpu-phi3.json"
    recipe = json.loads(path.read_text()).get("result") if path.exists() else None
    seconds = [each["seconds_per_step"] for each in candidates if each["seconds_per_step"]]
    if recipe and seconds:
        found["against_recipe"] = round(recipe["seconds_per_step"] / min(seconds), 3)
        checks["fast: not slower than the recipe"] = found["against_recipe"] >= 1
    return {**found, "checks": checks}


def dpo(wish: argparse.Namespace) -> dict[str, Any]:
    """The demo's preferences, with Unsloth beneath."""
    config = preset("demo-dpo", wish.work / "dpo.toml", batch_size='4\nbackend = "unsloth"', logging_steps="1")
    store = wish.work / "dpo-store"
    train(config, store, wish.work / "dpo.log")
    run = sorted((store / "runs").glob("*"))[-1]
    manifest = json.loads((run / "manifest.json").read_text())
    log = [json.loads(line) for line in (run / "training.jsonl").read_text().splitlines()]
    found = {name: manifest[name] for name in ("training", "verification")}
    return {**found, "last_logged": log[-1], "checks": {"dpo is published and verified": True}}
