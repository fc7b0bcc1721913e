#!/usr/bin/env python3
"""What docs/benchmarks.md says of a GPU, with one command, on all cards of this machine at once; but for the gateway's
rounds (serve_engines.py), vLLM's starts (vllm_starts.py) and more seeds (demo_seeds.py).

usage: .venv/trainer/bin/python benchmarks/gpu_table.py --phi3-tokenizer FOLDER [--out benchmarks/results]
       [--work FOLDER] [--only NAME,…] [--cards 0,1] [--list]

Each card takes the next task whose requirements are met, with its share of the processors: the stages of the GPU suite
(tests/gpu), training plans, serving. Tasks need the kit's environments and a llama.cpp for the GPU: `make llamacpp`, or
TUNESHIP_LLAMACPP. A task that fails without having made what others need keeps those back, and no other; a missed goal
keeps nothing back. What a task says is in WORK/logs. Prints one closing line with counts; the exit code is 1 where a
task failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.demo_seeds import SEEDS, store_of  # noqa: E402

FULL = "recipe,recipe-bucketed,recipe-waiting,recipe-whole,recipe-unsloth,16bit,16bit-wide-fused"
CHAT = "plain,recipe-padded,packed,packed-by-rows,16bit-packed"


@dataclass(frozen=True)
class Task:
    """A program of the environment `env`; `seconds` is what it took on an H100 or H200. `cards` of them are its own.
    `makes` is what those need that come `after` it, a pattern of paths below the work folder; else it has to succeed.
    """

    name: str
    seconds: int
    argv: list[str]
    after: tuple[str, ...] = ()
    env: str = "trainer"
    cards: int = 1
    makes: str = ""


def tasks(tokenizer: Path, out: Path, work: Path) -> list[Task]:
    """All of them, those first that others wait for, then the longest."""
    model = str(work / "phi3")
    plans = ["-m", "benchmarks.train_gpu", "--model", model, "--work", str(work / "plans")]

    def stage(name: str, seconds: int, *after: str, makes: str = "") -> Task:
        argv = ["-m", "tests.gpu.run", "--stages", name, "--phi3-tokenizer", str(tokenizer)]
        return Task(name, seconds, [*argv, "--out", str(out), "--work", str(work)], after, makes=makes)

    def training(name: str, seconds: int, variants: str, rows: str, cards: int = 1) -> Task:
        argv = [*plans, "--variants", variants, "--rows", rows, "--profile", "--out", str(out / f"gpu-{name}.json")]
        return Task(name, seconds, argv, ("model",), cards=cards)

    def serving(case: str, seconds: int) -> Task:
        name, argv = f"serving-gpu-{case}", ["benchmarks/serve_engines.py", "--store", str(work / "phi3-store")]
        argv += ["--cases", case, "--out", str(out / f"{name}.json")]
        return Task(name, seconds, argv, ("phi3",), env="server")

    planned = ["-m", "benchmarks.plan_memory", "--model", model, "--store", str(work / "plan-store")]
    planned += ["--out", str(out / "plan-gpu.json")]
    small = store_of(work, SEEDS[0]) / "bases" / "smollm2-135m-instruct-0.1.2" / "hf"  # real weights
    packed = ["-m", "benchmarks.packed_loss", "--model", str(small), "--out", str(out / "gpu-packed-loss.json")]
    return [
        Task("model", 25, ["-m", "benchmarks.phi3_random", model, "--tokenizer", str(tokenizer)], makes="phi3/*.json"),
        stage("plain", 150, "model"),
        stage("phi3", 430, "model", makes="phi3-store/runs/*"),  # compares with plain at its end
        training("training-full", 600, FULL, "full"),
        stage("vllm", 450),
        training("training-chat", 420, CHAT, "chat"),
        *(serving(f"vllm-{weights}", 340) for weights in ("merged", "adapter", "gguf-Q8_0")),
        Task("plan-memory", 330, planned, ("model",)),
        stage("smollm2", 235, makes=str(small.relative_to(work))),
        stage("warm", 220, "phi3"),
        stage("fast", 150, "phi3"),
        *(serving(f"llamacpp-{quantization}", 145) for quantization in ("BF16", "Q8_0", "Q4_K_M")),
        stage("dpo", 135),
        Task("packed-loss", 65, packed, ("smollm2",)),
        stage("llamacpp", 65),
        training("training-two", 230, "two,two-16bit", "full", cards=2),
    ]


class Table:
    """What is to be done and what became of it: `waiting`, `running`, `done`, `failed` or `left out`."""

    def __init__(self, wanted: list[Task], cards: list[str], work: Path) -> None:
        self._tasks, self._cards, self._work, self._logs = wanted, cards, work, work / "logs"
        self._lasted: dict[str, float] = {}
        self._states = {task.name: "waiting" for task in wanted}
        self._changed = threading.Condition()
        self._began = time.monotonic()

    def run(self) -> int:
        """Everything; the exit code."""
        there, cards = sorted(os.sched_getaffinity(0)), len(self._cards)
        ends = [place * len(there) // cards for place in range(cards + 1)]
        shares = [there[begin:end] or there for begin, end in pairwise(ends)]
        lanes = [threading.Thread(target=self._lane, args=each) for each in zip(self._cards, shares, strict=True)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        for task in self._tasks:
            if task.cards > 1 and self._may_begin(task):
                self._do(task, ",".join(self._cards[: task.cards]))
        states = list(self._states.values())
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "failed", "left out"))
        print(f"\n{counts}, {self._seconds() / 60:.1f} minutes on {len(self._cards)} cards", flush=True)
        return int("failed" in states)

    def _lane(self, card: str, processors: list[int]) -> None:
        os.sched_setaffinity(0, processors)  # of this thread, and of the programs that it starts
        while True:
            with self._changed:
                alone = [task for task in self._tasks if task.cards == 1]
                task = next((one for one in alone if self._may_begin(one)), None)
                if task:
                    self._states[task.name] = "running"
                elif not any(self._states[one.name] == "waiting" for one in alone):
                    return
                else:
                    self._changed.wait()
                    continue
            self._do(task, card)

    def _may_begin(self, task: Task) -> bool:
        """Whether all that it needs is there. It is left out where that was not made."""
        if self._states[task.name] != "waiting":
            return False
        needed = [one for one in self._tasks if one.name in task.after]  # what is not wanted was made before
        ended = [one for one in needed if self._states[one.name] in ("done", "failed", "left out")]
        if task.cards > len(self._cards) or not all(map(self._made, ended)):
            self._states[task.name] = "left out"
            self._say(f"{task.name} is left out")
            return False
        return len(ended) == len(needed)

    def _made(self, task: Task) -> bool:
        return any(self._work.glob(task.makes)) if task.makes else self._states[task.name] == "done"

    def _do(self, task: Task, cards: str) -> None:
        self._say(f"{task.name} begins on card {cards}, about {task.seconds} s")
        began, python = time.monotonic(), ROOT / ".venv" / task.env / "bin" / "python"
        with (self._logs / f"{task.name}.log").open("w") as log:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": cards}
            done = subprocess.run(
                [str(python), *task.argv], cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
            )
        with self._changed:
            self._states[task.name] = "failed" if done.returncode else "done"
            self._changed.notify_all()
        self._lasted[task.name] = round(time.monotonic() - began, 1)
        self._say(f"{task.name}: {self._states[task.name]} after {self._lasted[task.name]:.0f} s")

    def document(self) -> dict[str, Any]:
        """What was done, for a result file."""
        tasks = [
            {"name": task.name, "state": self._states[task.name], "seconds": self._lasted.get(task.name)}
            for task in self._tasks
        ]
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return {"date": date, "cards": len(self._cards), "seconds": round(self._seconds(), 1), "tasks": tasks}

    def _say(self, what: str) -> None:
        left = sum(task.seconds for task in self._tasks if self._states[task.name] in ("waiting", "running"))
        print(f"[{self._seconds():5.0f} s] {what}; {left / 60:.0f} card minutes to go\n", end="", flush=True)

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phi3-tokenizer", type=Path, help="a folder with Phi-3's tokenizer files")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=Path("/tmp/tuneship-gpu"))
    parser.add_argument("--only", help="names of tasks; default: all")
    parser.add_argument("--cards", help="default: CUDA_VISIBLE_DEVICES, or all that nvidia-smi shows")
    parser.add_argument("--list", action="store_true", help="say what there is to do and end")
    wish = parser.parse_args()
    if not wish.phi3_tokenizer and not wish.list:
        parser.error("--phi3-tokenizer is needed (make bench-gpu PHI3_TOKENIZER=FOLDER)")
    tokenizer = (wish.phi3_tokenizer or Path("FOLDER")).absolute()
    everything = tasks(tokenizer, wish.out.resolve(), wish.work.resolve())
    names = wish.only.split(",") if wish.only else [task.name for task in everything]
    if unknown := set(names) - {task.name for task in everything}:
        print(f"error: no task {', '.join(sorted(unknown))}; --list shows them", file=sys.stderr)
        return 2
    wanted = [task for task in everything if task.name in names]
    if wish.list:
        for task in wanted:
            print(f"{task.name:26} {task.seconds:4} s  {' '.join(task.argv)}")
        return 0
    cards = wish.cards.split(",") if wish.cards else visible_cards()
    if not cards:
        print("error: nvidia-smi shows no card", file=sys.stderr)
        return 2
    (wish.work / "logs").mkdir(parents=True, exist_ok=True)
    wish.out.mkdir(parents=True, exist_ok=True)
    table = Table(wanted, cards, wish.work)
    code = table.run()
    if not wish.only:
        (wish.out / "gpu-table.json").write_text(json.dumps(table.document(), indent=1) + "\n")
    return code


def visible_cards() -> list[str]:
    """The GPUs that this program may use."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [card for card in chosen.split(",") if card]
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in said.splitlines()))]


if __name__ == "__main__":
    sys.exit(main())
