"""What follows the first training: the same with warm caches, the plan that is fastest, learning from preferences."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from tests.gpu.phi3 import ROOT, on_full_rows, preset, published, stages, step_seconds, train
from tests.gpu.serving import served

WARM_STEPS = 20
WARM_GOAL_S = 120


def warm(wish: argparse.Namespace) -> dict[str, Any]:
    """The preset once more in the store of the stage phi3: the base is known, what was compiled is in the cache. All
    seconds from the command to a served token, but those of the training steps.
    """
    store, log = wish.work / "phi3-store", wish.work / "warm.log"
    config = on_full_rows(wish, "phi3-mini", WARM_STEPS, logging_steps="1")
    said = train(config, store, log)
    manifest, curve = published(store, log)
    step_s = statistics.median(step_seconds(curve, manifest["training"]["tokens_per_step"])[5:])
    trained, began = said[-1][0], time.monotonic()
    with served(store, manifest["id"], wish.work / "warm-serve.log"):
        start_s = time.monotonic() - began
    rest = trained - WARM_STEPS * step_s + start_s
    found = {"train_s": round(trained, 1), "steps": WARM_STEPS, "seconds_per_step": round(step_s, 4)}
    found |= {"server_start_s": round(start_s, 1), "all_but_the_steps_s": round(rest, 1), "goal_s": WARM_GOAL_S}
    return {**found, "stages_s": stages(said), "checks": {"warm: it is published and served": True}}


def fast(wish: argparse.Namespace) -> dict[str, Any]:
    """`plan = "fastest"` on the rows of the stage phi3: what was tried, what was chosen, and two steps of it."""
    store = wish.work / "fast-store"
    config = on_full_rows(wish, "phi3-mini-fast", wish.phi3_steps)
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
