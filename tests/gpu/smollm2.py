"""SmolLM2 with real weights through Unsloth: trained, served, evaluated; interrupted and resumed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.gpu.phi3 import ROOT, preset, train

CPU_RESULT = ROOT / "benchmarks" / "results" / "demo-cpu.json"
INTERRUPT_AT_STEP = 80
LARGEST_LOSS_DIFFERENCE = 0.05
STOPPED = 3  # the trainer's exit code
WAIT_S = 240


def smollm2(wish: argparse.Namespace) -> dict[str, Any]:
    """The demo's config, with Unsloth beneath."""
    config = preset("demo", wish.work / "smollm2.toml", batch_size='4\nbackend = "unsloth"', logging_steps="1")
    resumed = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.smollm2", str(config), str(wish.work / "resumed")], cwd=ROOT
    )
    store = wish.work / "smollm2-store"
    train(config, store, wish.work / "smollm2.log")
    manifest_path = sorted((store / "runs").glob("*/manifest.json"))[-1]
    manifest = json.loads(manifest_path.read_text())
    percent = _evaluate(store, wish.work)
    cpu = json.loads(CPU_RESULT.read_text())
    if resumed.wait(WAIT_S):
        raise RuntimeError("the interrupted and resumed training failed; its reason is on stderr")
    overlay = _overlay(manifest_path.parent / "training.jsonl", wish.work / "resumed" / "curve.jsonl")
    checks = {
        "smollm2 is published and verified": True,
        "smollm2: held-out accuracy not below the CPU backend's": percent["tuned"] >= cpu["tuned_percent"],
        "smollm2: the resumed curve overlays the uninterrupted one": overlay["largest_difference"]
        <= LARGEST_LOSS_DIFFERENCE,
    }
    return {
        "training": manifest["training"],
        "verification": manifest["verification"],
        "percent": percent,
        "cpu_percent": {"base": cpu["base_percent"], "tuned": cpu["tuned_percent"]},
        "resumed": overlay,
        "checks": checks,
    }


def _evaluate(store: Path, work: Path) -> dict[str, float]:
    """Serve the run and ask the held-out questions, as a user does."""
    with served(store, "current", work / "serve.log") as url:
        out = work / "report"
        argv = program("clients", "eval", "--url", f"{url}/v1", "--store", str(store), "--out", str(out))
        argv += ["--questions", "data/handbook-en/questions.jsonl", "--json"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    summary = json.loads(done.stdout)
    return {name: round(100 * summary[name]["strict"], 1) for name in ("base", "tuned")}


def program(name: str, *arguments: str) -> list[str]:
    """A program of the kit in its own environment, or in this one where there is only one."""
    python = ROOT / ".venv" / name / "bin" / "python"
    return [str(python) if python.exists() else sys.executable, "-m", name, *arguments]


def llama_server() -> dict[str, str]:
    """The server of the llama.cpp folder that TUNESHIP_LLAMACPP names, for the program `server`."""
    folder = os.environ.get("TUNESHIP_LLAMACPP")
    return {"TUNESHIP_LLAMA_SERVER": f"{folder}/llama-server"} if folder else {}


@contextmanager
def served(store: Path, ref: str, log: Path) -> Iterator[str]:
    """The run behind llama.cpp, ready; the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment, url = {**os.environ, **llama_server()}, f"http://127.0.0.1:{port}"
    argv = program("server", "serve", ref, "--store", str(store), "--port", str(port), "--engine", "llamacpp")
    with (
        log.open("w") as said,
        subprocess.Popen(argv, cwd=ROOT, stdout=said, stderr=said, env=environment) as server,
    ):
        try:
            subprocess.run(program("server", "wait", "--url", url, "--timeout-s", "120"), cwd=ROOT, check=True)
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


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
