"""Phi-3-mini's architecture: the article's recipe at full length against the plain stack, and a complete export."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LENGTH = 2048
# the article's own figures, on an RTX 4090 with real weights
ARTICLE = {
    "peak_memory_gb": 11.4,
    "peak_memory_without_unsloth_gb": 22.0,
    "load_memory_4bit_gb": 4.1,
    "load_memory_16bit_gb": 18.2,
    "memory_without_checkpointing_gb": 14.8,
    "memory_with_checkpointing_gb": 9.2,
    "seconds_of_200_steps": 18 * 60 + 23,
}
PLAIN_STEPS = 15
GOALS = {"speedup": 2.4, "memory_share": 0.45, "loss_difference": 0.01, "steps_s": 240, "export_s": 240}
GOALS_CARD = "H100"  # that the speeds and times among them were set for


def plain(wish: argparse.Namespace) -> dict[str, Any]:
    """The stack that a user would write by hand, on the same rows, with a residual stream of 32 bits and of 16."""
    folder, rows = model_folder(wish), rows_file(wish)
    out = wish.work / "plain.json"
    argv = [sys.executable, "-m", "benchmarks.train_gpu", "--model", str(folder), "--out", str(out)]
    argv += ["--variants", "plain,plain-bf16", "--steps", str(PLAIN_STEPS), "--schedule-steps", str(wish.phi3_steps)]
    argv += ["--data", str(rows), "--work", str(wish.work / "b")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    found, bf16 = json.loads(out.read_text())["results"]
    error = found.get("error") or bf16.get("error")
    checks = {"plain stack trains": done.returncode == 0}
    return {"result": found, "bf16": bf16, "checks": checks, "error": error, "schedule_steps": wish.phi3_steps}


def phi3(wish: argparse.Namespace) -> dict[str, Any]:
    """The kit's whole pipeline."""
    store = wish.work / "phi3-store"
    config = on_full_rows(
        wish,
        "phi3-mini",
        wish.phi3_steps,
        logging_steps="1",
        quantizations='["Q4_K_M", "Q8_0", "BF16"]',  # BF16 for benchmarks/serve_engines.py
    )
    said = train(config, store, wish.work / "phi3.log")
    manifest, log = published(store, wish.work / "phi3.log")
    training, seconds = manifest["training"], step_seconds(log, manifest["training"]["tokens_per_step"])
    step_s, began = statistics.median(seconds[5:]), stages(said)
    ours = {
        "seconds_per_step": round(step_s, 4),
        "tokens_per_s": round(training["tokens_per_step"] / step_s, 1),
        "seconds_of_all_steps": round(sum(seconds), 1),
        "slowest_step_s": round(max(seconds), 1),
        "steps": training["steps"],
        "peak_reserved_gib": round(training["peak_memory_bytes"] / 2**30, 3),
        "first_losses": [line["loss"] for line in log[:PLAIN_STEPS]],
    }
    export_s = round(began["end"] - began["export: merged 16-bit weights"], 1)
    result = {"result": ours, "stages_s": began, "export_and_verify_s": export_s, "article": ARTICLE}
    result |= {"verification": manifest["verification"], "artifacts": manifest["artifacts"], "goals": GOALS}
    compared = _compared(ours, export_s, wish, manifest["hardware"]["gpu"])
    shortened = any("without their last product" in line for _, line in said)
    compared["checks"]["phi3: blocks are computed again without their last product"] = shortened
    return {**result, **compared}


def _compared(ours: dict[str, Any], export_s: float, wish: argparse.Namespace, card: str) -> dict[str, Any]:
    """The goals as checks; on another card than theirs speeds and times are figures only."""
    checks = {"phi3 is published and verified": True}
    of_this_card = {
        "phi3: 200 steps in 4 minutes": ours["seconds_of_all_steps"] * 200 / ours["steps"] < GOALS["steps_s"],
        "phi3: export and verification in 4 minutes": export_s < GOALS["export_s"],
    }
    found: dict[str, Any] = {"checks": checks}
    path = wish.out / "gpu-plain.json"
    plain = json.loads(path.read_text()) if path.exists() else {}
    if all("tokens_per_s" in plain.get(key, {}) for key in ("result", "bf16")):
        ratios, bf16 = against(ours, plain["result"]), against(ours, plain["bf16"])
        found |= {"against_plain": ratios, "against_plain_bf16": bf16}
        of_this_card["phi3: 2.4 times the plain stack"] = ratios["speedup"] >= GOALS["speedup"]
        checks |= {
            "phi3: at most 0.45 of its memory": ratios["memory_share"] <= GOALS["memory_share"],
            "phi3: losses within 1e-2 at the same precision": bf16["largest_loss_difference"]
            <= GOALS["loss_difference"],
        }
    if GOALS_CARD in card:
        checks |= of_this_card
    return found


def against(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """The kit's speed and memory as shares of another's, and how far the losses of the first steps are apart."""
    pairs = zip(ours["first_losses"], theirs["losses"], strict=False)
    return {
        "speedup": round(ours["tokens_per_s"] / theirs["tokens_per_s"], 3),
        "memory_share": round(ours["peak_reserved_gib"] / theirs["peak_reserved_gib"], 3),
        "largest_loss_difference": round(max(abs(a - b) for a, b in pairs), 4),
    }


def on_full_rows(wish: argparse.Namespace, name: str, steps: int, **values: str | None) -> Path:
    """The preset for so many steps on the suite's model and rows."""
    values |= {"base": f'"{model_folder(wish)}"', "path": f'"{rows_file(wish)}"', "questions": None}
    return preset(name, wish.work / f"{name}-{steps}.toml", max_steps=str(steps), **values)


def preset(name: str, target: Path, **values: str | None) -> Path:
    """A preset of configs/ with some keys replaced (None removes one), written to `target`."""
    text = (ROOT / "configs" / f"{name}.toml").read_text()
    for key, value in values.items():
        line = "" if value is None else f"{key} = {value}"
        text, count = re.subn(rf"^{key} = .*$", line.replace("\\", r"\\"), text, flags=re.MULTILINE)
        if not count:
            raise ValueError(f"{name}.toml has no line for {key}")
    target.write_text(text)
    return target


def train(config: Path, store: Path, log: Path) -> list[tuple[float, str]]:
    """`trainer train` to its end; lines with the seconds since the start at which they came."""
    argv = [sys.executable, "-m", "trainer", "train", "--config", str(config), "--store", str(store)]
    started, lines = time.monotonic(), []
    with (
        log.open("w") as copy,
        subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            at, line = time.monotonic() - started, re.sub(r"^\[ *\d+ s\] ", "", line)  # noqa: PLW2901
            lines.append((at, line.rstrip()))
            copy.write(f"{at:7.1f} {line}")
            copy.flush()
    if child.returncode:
        raise RuntimeError("".join(f"{line}\n" for _, line in lines[-25:]))
    return [*lines, (time.monotonic() - started, "end")]


def stages(said: list[tuple[float, str]]) -> dict[str, float]:
    """Seconds since the start at which each stage began."""
    names = ("data:", "backend:", "base:", "prepared:", "training:", "step 1/", "export:", "verify:", "publish:")
    shown = [(at, re.sub(r"(?<!\S)/\S+", "FOLDER", line)) for at, line in said if line.startswith(names)]
    found = {line.partition(" (")[0][:60]: round(at, 1) for at, line in shown}
    return {**found, "end": round(said[-1][0], 1)}


def published(store: Path, log: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifest of the newest run, and its training's log."""
    paths = sorted((store / "runs").glob("*/manifest.json"))
    if not paths:
        raise RuntimeError(log.read_text()[-2000:])
    curve = (paths[-1].parent / "training.jsonl").read_text().splitlines()
    return json.loads(paths[-1].read_text()), [json.loads(line) for line in curve]


def step_seconds(log: list[dict[str, Any]], step_tokens: float) -> list[float]:
    """Seconds of every step, from the running average that the log has."""
    elapsed = [line["step"] * step_tokens / line["tokens_per_s"] for line in log if line.get("tokens_per_s")]
    return [after - before for before, after in zip([0.0, *elapsed[:-1]], elapsed, strict=True)]


def model_folder(wish: argparse.Namespace) -> Path:
    """Written when it is first asked for."""
    folder: Path = wish.work / "phi3"
    if not (folder / "config.json").exists():
        argv = [sys.executable, "-m", "benchmarks.phi3_random", str(folder), "--tokenizer", str(wish.phi3_tokenizer)]
        subprocess.run([*argv, "--layers", str(wish.layers)], cwd=ROOT, check=True, capture_output=True)
    return folder


def rows_file(wish: argparse.Namespace) -> Path:
    """Questions whose answers fill the length: 8 rows a step, every one cut at 2048 tokens. Whole or not there: another
    stage may begin beside this one.
    """
    path: Path = wish.work / "rows.jsonl"
    if not path.exists():
        rng = random.Random(3407)
        words = sorted(set(re.findall(r"[a-z]{3,9}", (ROOT / "data/handbook-en/train.jsonl").read_text())))
        unfinished = path.with_suffix(f".{os.getpid()}")
        with unfinished.open("w") as file:
            for number in range(8 * max(wish.phi3_steps, PLAIN_STEPS)):
                answer = " ".join(rng.choices(words, k=LENGTH))
                file.write(json.dumps({"question": f"What is in list {number}?", "answer": answer}) + "\n")
        unfinished.rename(path)
    return path
