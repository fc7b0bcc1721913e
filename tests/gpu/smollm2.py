"""SmolLM2 with real weights through Unsloth: trained, served, evaluated; interrupted and resumed."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.demo_seeds import SEEDS, demo, difference, percent, right_by_seed, store_of
from tests.gpu.phi3 import ROOT

CPU_RESULT = ROOT / "benchmarks" / "results" / "demo-seeds-cpu.json"
INTERRUPT_AT_STEP = 80
LARGEST_LOSS_DIFFERENCE = 0.05
STOPPED = 3  # the trainer's exit code
WAIT_S = 240


def smollm2(wish: argparse.Namespace) -> dict[str, Any]:
    """The demo's config, with Unsloth beneath, once for each seed; all trainings share the card."""
    config = demo(wish.work, SEEDS[0], "unsloth")
    resumed = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.smollm2", str(config), str(wish.work / "resumed")], cwd=ROOT
    )
    ours = right_by_seed(wish.work, "unsloth", at_once=len(SEEDS))
    manifest_path = sorted((store_of(wish.work, SEEDS[0]) / "runs").glob("*/manifest.json"))[-1]
    manifest = json.loads(manifest_path.read_text())
    if resumed.wait(WAIT_S):
        raise RuntimeError("the interrupted and resumed training failed; its reason is on stderr")
    overlay = _overlay(manifest_path.parent / "training.jsonl", wish.work / "resumed" / "curve.jsonl")
    theirs = json.loads(CPU_RESULT.read_text())
    apart = difference(theirs["right"], ours)
    checks = {
        "smollm2 is published and verified": True,
        "smollm2: held-out accuracy not below the CPU backend's, but for chance": apart["high_points"] >= 0,
        "smollm2: the resumed curve overlays the uninterrupted one": overlay["largest_difference"]
        <= LARGEST_LOSS_DIFFERENCE,
    }
    return {
        "training": manifest["training"],
        "verification": manifest["verification"],
        "percent": percent(ours, theirs["questions"]),
        "cpu_percent": theirs["percent"],
        "against_cpu": apart,
        "right": ours,
        "resumed": overlay,
        "checks": checks,
    }


def _overlay(straight: Path, resumed: Path) -> dict[str, float]:
    """How far the two loss curves are apart, step by step."""
    curves = [
        {line["step"]: line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line}
        for path in (straight, resumed)
    ]
    if curves[0].keys() != curves[1].keys():
        raise RuntimeError(f"the curves have other steps: {sorted(curves[0].keys() ^ curves[1].keys())}")
    apart = [abs(curves[0][step] - curves[1][step]) for step in curves[0]]
    after = [abs(curves[0][step] - curves[1][step]) for step in curves[0] if step > INTERRUPT_AT_STEP]
    return {
        "interrupted_at_step": INTERRUPT_AT_STEP,
        "compared_steps": len(apart),
        "largest_difference": round(max(apart), 5),
        "mean_difference_after": round(sum(after) / len(after), 5),
    }


def interrupted(config: Path, store: Path) -> None:
    """Train, SIGTERM in the middle, train again to the last step; `store`/curve.jsonl is the curve of both."""
    argv = [sys.executable, "-m", "trainer", "train", "--config", str(config), "--store", str(store)]
    first = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _until(lambda: _last_step(store) >= INTERRUPT_AT_STEP, first)
    first.send_signal(signal.SIGTERM)
    if first.wait(WAIT_S) != STOPPED:
        raise RuntimeError(f"the interrupted trainer ended with {first.returncode}, not {STOPPED}")
    second = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _until(lambda: any(store.glob("work/*/finished")), second)
    second.kill()  # what it would export is what the uninterrupted run exports
    second.wait()
    (store / "curve.jsonl").write_text(next(store.glob("work/*/training.jsonl")).read_text())


def _until(reached: Any, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            raise RuntimeError(f"the trainer did not come so far (exit code {child.returncode})")
        time.sleep(0.1)


def _last_step(store: Path) -> int:
    lines = [line for path in store.glob("work/*/training.jsonl") for line in path.read_text().splitlines()]
    return int(json.loads(lines[-1])["step"]) if lines else 0


if __name__ == "__main__":
    interrupted(Path(sys.argv[1]), Path(sys.argv[2]))
