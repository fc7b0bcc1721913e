"""Kills trainings with SIGKILL at random moments, from the import of the base to the publication, and looks after each
kill whether anything was lost.

usage: python -m tests.faults.kill_fuzz [--moments 1000] [--limit-s 3600] [--seed 1] [--output FILE]

Every training is the whole real pipeline with a very small model. After each kill the store must be readable, every
published run whole and nothing else visible; the next start continues. After some kills a cycle is left alone: it must
publish, with the same weights, bit for bit, and the same losses as a training that nobody disturbed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelstore import Run, Store
from tests import quick_programs
from tests.faults import tiny_model

# phase -> what the trainer says, or the folder that appears, when it begins
PHASES = {
    "load": "data: ",
    "train": "training: run ",
    "checkpoint": ".writing",
    "merge": "export: merged",
    "convert and quantize": "export: GGUF Q8_0\n",
    "base's files": "of the base model",
    "verify": "verify: merged",
    "verify in the engine": "in llama.cpp",
    "publish": "publish: ",
    "promote": "published: ",
}
KILLS_PER_CYCLE = (3, 12)
LEAST_MOMENTS = 3  # also where the machine is so slow that the time is up before
PATIENCE_S = 300
SAME = ("adapter/adapter_model.safetensors", "merged/model.safetensors", "gguf/tuned-Q8_0.gguf")


@dataclass
class Tally:
    """What was done and what was found."""

    kills: Counter[str] = field(default_factory=Counter)
    published_before_the_kill: int = 0
    cycles: int = 0
    continued: int = 0
    faults: list[str] = field(default_factory=list)


class Fuzz:
    """One folder with the model, the data, the undisturbed run, and the store that is being tormented."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.tally = folder, random.Random(seed), Tally()
        self.base = tiny_model.write_model(folder / "tiny-llama")
        self.config = folder / "config.toml"
        data = tiny_model.write_data(folder / "train.jsonl")
        self.config.write_text(tiny_model.toml(tiny_model.config(self.base, data)))
        self.log = folder / "log"

    def start(self, store: Path) -> int:
        """A trainer of its own process; its id."""
        self.log.write_bytes(b"")

        def work() -> None:
            stream = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            from trainer.cli import main

            with quick_programs.taken(self.folder):
                main(["train", "--config", str(self.config), "--store", str(store)])

        return quick_programs.fork(work)

    def undisturbed(self) -> Run:
        """The run to compare with; how long each phase took is kept."""
        store = self.folder / "undisturbed"
        pid, began, self.lasts_s = self.start(store), time.monotonic(), dict.fromkeys(PHASES, 0.05)
        phase, since = "load", began
        while not _ended(pid):
            now = self.phase(store)
            if now != phase:
                self.lasts_s[phase] = max(self.lasts_s[phase], time.monotonic() - since)
                phase, since = now, time.monotonic()
            time.sleep(0.001)
        runs = Store(store).runs()
        if len(runs) != 1:
            raise SystemExit(f"the undisturbed training failed:\n{self.log.read_text()}")
        print(f"undisturbed: {time.monotonic() - began:.1f} s, phases {self.lasts_s}", file=sys.stderr, flush=True)
        return runs[0]

    def phase(self, store: Path) -> str:
        """Where the trainer is, by what it said last."""
        said = self.log.read_text(errors="replace")
        found = max(PHASES, key=lambda name: said.rfind(PHASES[name]))
        if found == "train" and any(store.glob("work/*/checkpoints/.writing")):
            return "checkpoint"
        return found if said else "load"

    def kill_once(self, store: Path) -> bool:
        """Start, kill in a phase drawn by lot; whether the trainer was still running then."""
        wanted = self.random.choice(list(PHASES))
        pid, deadline = self.start(store), time.monotonic() + PATIENCE_S
        reached = list(PHASES).index(wanted)
        skip = self.random.randrange(4) if wanted == "checkpoint" else 0  # which of the checkpoints
        while not _ended(pid) and time.monotonic() < deadline:
            now = self.phase(store)
            if now == wanted and not skip:
                break
            skip -= now == wanted and skip > 0
            if list(PHASES).index(now) > reached:
                break
            time.sleep(0.001)
        delay = self.random.uniform(0, self.lasts_s[wanted] * 1.1)
        began = time.monotonic()
        while not (ended := _ended(pid)) and time.monotonic() - began < delay:
            time.sleep(0.0005)
        at = self.phase(store)
        if ended:
            return False
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if not Store(store).runs() and at == "promote":
            at = "publish"
        self.tally.kills[at] += 1
        self.tally.continued += "continues run" in self.log.read_text(errors="replace")
        return True

    def cycle(self, number: int, reference: Run, moments: int) -> None:
        """Some kills, then peace."""
        store = self.folder / f"store-{number}"
        if number % 4:  # a base that is there already; every fourth cycle imports it
            shutil.copytree(self.folder / "undisturbed" / "bases", store / "bases")
        for _ in range(self.random.randint(*KILLS_PER_CYCLE)):
            if sum(self.tally.kills.values()) >= moments or not self.kill_once(store):
                break
            self.look(store)
            if Store(store).runs():
                self.tally.published_before_the_kill += 1
                break
        pid = self.start(store)
        while not _ended(pid):
            time.sleep(0.01)
        self.look(store)
        self.finished(store, reference)
        self.tally.cycles += 1
        if not self.tally.faults:
            shutil.rmtree(store)

    def look(self, path: Path) -> None:
        """What a reader sees now."""
        store = Store(path)
        try:
            for run in [*store.runs(), *store.bases()]:
                store.check(run)
            if current := store.channel("current"):
                store.check(store.run(current))
            for parent in ("runs", "bases"):
                names = {each.name for each in (path / parent).glob("*") if not each.name.startswith(".")}
                if names != {run.id for run in (store.runs() if parent == "runs" else store.bases())}:
                    self.fault(f"{parent}/ shows {sorted(names)}")
        except Exception as error:
            self.fault(repr(error))

    def finished(self, path: Path, reference: Run) -> None:
        """What the undisturbed start at the end must have made."""
        runs = Store(path).runs()
        if len(runs) != 1 or Store(path).channel("current") != runs[0].id:
            self.fault(f"not one run that is current, but {[run.id for run in runs]}:\n{self.log.read_text()}")
            return
        hashes = [{a.relative: a.sha256 for a in run.manifest.artifacts} for run in (reference, runs[0])]
        if different := [name for name in SAME if hashes[0][name] != hashes[1][name]]:
            self.fault(f"other bytes in {different}")
        if _losses(reference) != _losses(runs[0]):
            self.fault("another loss curve")
        left = [each.name for each in (path / "work").iterdir() if each.suffix != ".lock"]
        if left:
            self.fault(f"left over in work/: {left}")

    def fault(self, said: str) -> None:
        """Something was lost."""
        print(f"FAULT: {said}", file=sys.stderr, flush=True)
        self.tally.faults.append(said)


def run(moments: int, limit_s: float, seed: int) -> dict[str, Any]:
    """Torment until so many kills were done, or the time is up after a few; the result as JSON values."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import_libraries()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a killed process loses nothing that it wrote
    with tempfile.TemporaryDirectory(prefix="kill-fuzz-", dir=memory) as name, quick_programs.served(Path(name)):
        return _torment(Fuzz(Path(name), seed), moments, limit_s, seed)


def _torment(fuzz: Fuzz, moments: int, limit_s: float, seed: int) -> dict[str, Any]:
    began, number = time.monotonic(), 0
    reference = fuzz.undisturbed()
    while (done := fuzz.tally.kills.total()) < moments and (done < LEAST_MOMENTS or time.monotonic() - began < limit_s):
        fuzz.cycle(number, reference, moments)
        number += 1
        tally = fuzz.tally
        print(
            f"{time.monotonic() - began:.0f} s: {tally.kills.total()} kills, {tally.cycles} cycles, "
            f"{len(tally.faults)} faults",
            file=sys.stderr,
            flush=True,
        )
    tally = fuzz.tally
    return {
        "moments": tally.kills.total(),
        "by_phase": {phase: tally.kills[phase] for phase in PHASES},
        "starts_that_continued": tally.continued,
        "trainings_published": tally.cycles,
        "kills_after_publication": tally.published_before_the_kill,
        "identical_to_undisturbed": list(SAME),
        "faults": tally.faults,
        "seed": seed,
        "seconds": round(time.monotonic() - began),
    }


def import_libraries() -> None:
    """What a trainer imports, without a computation: threads would not survive the forks."""
    from trainer.cli import prepare_process

    prepare_process()
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import trl  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    import trainer.pipeline  # noqa: F401

    gc.freeze()  # a collection in a fork would copy every page


def _ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _losses(run: Run) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run.path / "training.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1000)
    parser.add_argument("--limit-s", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    wish = parser.parse_args()
    result = run(wish.moments, wish.limit_s, wish.seed)
    if wish.output:
        from trainer.machine import hardware, package_versions

        command = f"python -m tests.faults.kill_fuzz --moments {wish.moments} --seed {wish.seed}"
        document = {"command": command, "hardware": hardware(), "packages": package_versions(), **result}
        wish.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
