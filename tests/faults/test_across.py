"""A training in two processes against the same one in one process: losses, stop, resume, and no orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelstore import Store
from tests.faults import tiny_model
from tests.faults.test_training import ROOT, Said, go
from trainer.checkpoints import checkpoints
from trainer.config import TrainConfig
from trainer.finetune import Stopped

SAME = 1e-4  # of a loss, in fp32: sums are made in another order


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven rows of different length: the last step of an epoch has three, which two processes cannot share."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"question": f"Key {n}?", "answer": "X-Key." * (1 + n % 5)} for n in range(11)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_processes(count: int, base: Path, data: Path) -> TrainConfig:
    steps = {"max_steps": 10, "gradient_accumulation_steps": 2, "processes": count}
    tree = tiny_model.config(base, data, **steps)
    tree["model"]["weights"] = "fp32"
    return TrainConfig.model_validate(tree)


def curve(store: Path) -> list[dict[str, float]]:
    (log,) = store.glob("runs/*/training.jsonl")
    return [json.loads(line) for line in log.open()]


def test_two_processes_stopped_and_continued_train_as_one(base: Path, rows: Path, tmp_path: Path) -> None:
    go(in_processes(1, base, rows), tmp_path / "one")
    asked = iter(range(100))
    two = in_processes(2, base, rows)
    with pytest.raises(Stopped):
        go(two, tmp_path / "two", should_stop=lambda: next(asked) == 2)
    (checkpoint, *_) = checkpoints(next((tmp_path / "two").glob("work/*/checkpoints")))[::-1]
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {path.name for path in checkpoint.iterdir()}
    said = Said()
    run = go(two, tmp_path / "two", said).run
    assert any(line.startswith("continues run") for line in said.lines)
    assert run.manifest.training["processes"] == 2 and run.manifest.training["resumed_from_step"] >= 3
    Store(tmp_path / "two").check(run)
    alone, together = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [line["step"] for line in together] == [line["step"] for line in alone] == list(range(1, 11))
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(alone, together, strict=True)) <= SAME
    assert not (tmp_path / "two" / "work" / run.id).exists()


def programs(word: str) -> list[int]:
    """Processes with this word among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "trainer.ranks" in arguments and any(word in argument for argument in arguments):
            found.append(int(folder.name))
    return found


def wait_until(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="programs are bound to their parent on Linux only: NOT TESTED HERE")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(base: Path, rows: Path, tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM leaves a checkpoint and code 3."""
    path, store = tmp_path / "config.toml", tmp_path / "store"
    path.write_text(tiny_model.toml(tiny_model.config(base, rows, max_steps=5000, processes=2)))
    argv = [sys.executable, "-m", "trainer", "train", "--config", str(path), "--store", str(store)]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(argv, cwd=ROOT, stderr=log) as command:
        wait_until(lambda: list(store.glob("work/*/checkpoints/checkpoint-*")), 120)
        assert len(programs(str(store))) == 3  # torchrun and two of ours
        os.kill(command.pid, number)
        code = command.wait(60)
    said = (tmp_path / "log").read_text()
    assert code == (3 if number == signal.SIGTERM else -number), said
    assert "Traceback" not in said and ("continues from there" in said) == (code == 3)
    wait_until(lambda: not programs(str(store)), 10)
    assert not programs(str(store))
