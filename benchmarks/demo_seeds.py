#!/usr/bin/env python3
"""The demo's held-out accuracy for several seeds, through the served file: what one seed's figure is worth, and what
another backend's is to be compared with.

usage: .venv/trainer/bin/python benchmarks/demo_seeds.py RESULT.json [--backend transformers] [--seeds 3407,1,2]
       [--weights auto] [--at-once 1] [--against RESULT.json] [--work FOLDER]

The seed decides the adapter's first values and the order of rows; rows and questions are the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clients.statistics import mean_interval  # noqa: E402
from tests.gpu.phi3 import preset, train  # noqa: E402
from tests.gpu.serving import right_answers  # noqa: E402

SEEDS = (3407, 1, 2)
QUESTIONS = ROOT / "data" / "handbook-en" / "questions.jsonl"

Right = dict[str, dict[str, list[str]]]  # by seed, then "base" and "tuned": the questions answered rightly


def demo(work: Path, seed: int, backend: str, weights: str = "auto") -> Path:
    """The demo's config file for a seed."""
    lines = f'4\nbackend = "{backend}"\nseed = {seed}'
    target = work / f"smollm2-{seed}.toml"
    return preset("demo", target, batch_size=lines, weights=f'"{weights}"', logging_steps="1")


def store_of(work: Path, seed: int) -> Path:
    """Where a seed's run is."""
    return work / f"smollm2-store-{seed}"


def right_by_seed(
    work: Path, backend: str, seeds: tuple[int, ...] = SEEDS, at_once: int = 1, weights: str = "auto"
) -> Right:
    """Train for every seed, so many at once; then serve and ask one run after the other."""

    def trained(seed: int) -> None:
        train(demo(work, seed, backend, weights), store_of(work, seed), work / f"smollm2-{seed}.log")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(trained, seeds))
    found = {}
    for seed in seeds:
        folder = work / f"asked-{seed}"
        folder.mkdir(exist_ok=True)
        found[str(seed)] = right_answers(store_of(work, seed), folder)
    return found


def percent(right: Right, questions: int) -> dict[str, dict[str, float]]:
    """Strict accuracy by model and seed."""
    return {
        model: {seed: round(100 * len(each[model]) / questions, 1) for seed, each in right.items()}
        for model in ("base", "tuned")
    }


def difference(theirs: Right, ours: Right) -> dict[str, float]:
    """Ours minus theirs in points, and its 95% interval: the questions are the sample, the seeds are averaged."""
    questions = [json.loads(line)["id"] for line in QUESTIONS.read_text().splitlines()]
    apart = [_share(ours, question) - _share(theirs, question) for question in questions]
    low, high = mean_interval(apart, -1.0, 1.0)
    figures = {"difference": statistics.mean(apart), "low": low, "high": high}
    return {f"{name}_points": round(100 * value, 2) for name, value in figures.items()}


def _share(right: Right, question: str) -> float:
    return statistics.mean(question in each["tuned"] for each in right.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--backend", choices=["transformers", "unsloth"], default="transformers")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--weights", default="auto", help="model.weights of the config")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side")
    parser.add_argument("--against", type=Path, help="the result to subtract, question by question")
    parser.add_argument("--work", type=Path, default=Path("/tmp/tuneship-seeds"))
    wish = parser.parse_args()
    wish.work.mkdir(parents=True, exist_ok=True)
    from trainer.machine import hardware, package_versions

    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    seeds = tuple(map(int, wish.seeds.split(",")))
    right = right_by_seed(wish.work, wish.backend, seeds, wish.at_once, wish.weights)
    questions = len(QUESTIONS.read_text().splitlines())
    command = f"benchmarks/demo_seeds.py RESULT --backend {wish.backend} --seeds {wish.seeds} --weights {wish.weights}"
    command += f" --at-once {wish.at_once}" + (f" --against {wish.against.name}" if wish.against else "")
    document: dict[str, Any] = {"command": command, "date": date}
    document |= {"hardware": hardware(), "packages": package_versions(), "questions": questions}
    document |= {"percent": percent(right, questions), "right": right}
    if wish.against:
        theirs = json.loads(wish.against.read_text())
        document["against"] = {"command": theirs["command"], **difference(theirs["right"], right)}
    wish.result.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["percent"]))


if __name__ == "__main__":
    main()
