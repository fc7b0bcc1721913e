"""A training under adversity: full and read-only disks, rivals, readers, signals, losses that explode."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelstore import Store, UserError
from tests import quick_programs
from tests.faults import tiny_model
from trainer.checkpoints import checkpoints
from trainer.config import TrainConfig
from trainer.divergence import Diverged
from trainer.finetune import Stopped
from trainer.pipeline import train
from trainer.progress import Reporter

ROOT = Path(__file__).parents[2]
mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root: NOT TESTED HERE")


class Said(Reporter):
    """Keeps what was said; `at` runs something when a line begins so."""

    def __init__(self, at: dict[str, Callable[[], object]] | None = None) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.at = at or {}

    def say(self, message: str) -> None:
        self.lines.append(message)
        for beginning, act in self.at.items():
            if message.startswith(beginning):
                act()


def go(
    wish: TrainConfig, store: Path, said: Said | None = None, should_stop: Callable[[], bool] = lambda: False
) -> Any:
    return train(wish, Store(store), said or Said(), should_stop, again=False)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here, NOT TESTED: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb") as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(b"x" * size)
                    file.flush()
            except OSError:
                continue


@pytest.mark.fault(
    what="disk full at a checkpoint, merge, conversion, the base's files, publication",
    how="a small disk in memory is filled to the last byte at that moment (needs root)",
    lost="nothing: one message; with room again the same command continues and publishes",
)
@mounts
@pytest.mark.parametrize("moment", ["checkpoint", "merge", "convert", "base's files", "publish"])
def test_a_disk_that_fills_up_is_said_and_after_making_room_the_run_is_published(
    wish: TrainConfig, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.pipeline.needed_bytes", lambda *_: 0)  # which would refuse the small disk at once
    with small_disk(tmp_path / "disk", 64) as disk:
        at = {"merge": "export: merged", "convert": "export: GGUF Q8_0", "publish": "publish: ", "base's files": "of"}
        said = Said({at.get(moment, "-"): lambda: fill(disk)})
        if moment == "base's files":
            said.at = {"export: GGUF Q8_0 of the base": lambda: fill(disk)}
        steps = iter(range(100))

        def in_training() -> bool:
            if moment == "checkpoint" and next(steps) == 4:
                fill(disk)
            return False

        with pytest.raises(UserError, match=r"the disk is full.*Published runs are untouched"):
            go(wish, disk / "store", said, in_training)
        assert Store(disk / "store").runs() == []
        (disk / "ballast").unlink()
        again = Said()
        outcome = go(wish, disk / "store", again)
        assert any(line.startswith("continues run") for line in again.lines)
        Store(disk / "store").check(outcome.run)


@pytest.mark.fault(
    what="read-only store",
    how="a disk mounted read-only (needs root)",
    lost="nothing: said before training",
)
@mounts
def test_a_read_only_store_is_said_before_training(wish: TrainConfig, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        Store(disk / "store").create()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match="read-only"):
            go(wish, disk / "store")


@pytest.mark.fault(
    what="two trainers, two configs",
    how="the same, with one base model",
    lost="nothing: both publish; the base's files are made once, the second waits",
)
@pytest.mark.fault(
    what="two trainers, one config",
    how="both start on one store",
    lost="nothing: the second is refused",
)
def test_two_trainers_on_one_store(wish: TrainConfig, tmp_path: Path) -> None:
    """Of one config: the second is refused. Of two: both publish, and share the base's files."""
    other = wish.model_copy(update={"name": "other"})
    code = []
    pids: list[int] = []

    def rival(config: TrainConfig) -> Callable[[], None]:
        return lambda: pids.append(quick_programs.fork(lambda: code.append(go(config, tmp_path))))

    refused: list[UserError] = []

    def twin() -> None:
        try:
            go(wish, tmp_path)
        except UserError as error:
            refused.append(error)

    said = Said({"training: run": lambda: (rival(other)(), twin())})
    mine = go(wish, tmp_path, said)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert "Another process" in str(refused[0])
    store = Store(tmp_path)
    assert len(store.runs()) == 2 and mine.run.id in {run.id for run in store.runs()}
    for run in [*store.runs(), *store.bases()]:
        store.check(run)


@pytest.mark.fault(
    what="a reader while a run is published",
    how="a thread lists and hashes all runs without pause",
    lost="nothing: it sees no run, then a whole one",
)
def test_a_reader_sees_a_whole_run_or_none_while_it_is_published(
    wish: TrainConfig, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seen: list[int] = []
    over = threading.Event()
    faults: list[BaseException] = []

    def read() -> None:
        store = Store(tmp_path)
        while not over.is_set():
            try:
                for run in store.runs():
                    store.check(run)
                seen.append(len(store.runs()))
            except BaseException as error:
                faults.append(error)
                return

    reader = threading.Thread(target=read)
    go(wish, tmp_path, Said({"publish: ": reader.start}))
    deadline = time.monotonic() + 30
    while 1 not in seen and not faults and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    reader.join()
    assert not faults and seen == sorted(seen) and seen[-1] == 1
    record_property("times", f"{len(seen)} looks, {seen.count(0)} before it was there")


@pytest.mark.fault(
    what="config or data changed since the run began",
    how="another learning rate; one more row",
    lost="nothing: the old run is not continued, the changed keys are named, a new run begins. "
    "The old command still continues the old run",
)
def test_another_config_or_other_data_does_not_continue_a_run_and_says_why(
    wish: TrainConfig, data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with pytest.raises(Stopped):
        go(wish, tmp_path, should_stop=lambda: True)
    begun = next((tmp_path / "work").glob("*/fingerprint")).parent.name
    changed = wish.training.model_copy(update={"learning_rate": 5e-3})
    said = Said()
    with pytest.raises(Stopped):
        go(wish.model_copy(update={"training": changed}), tmp_path, said, lambda: True)
    why = f"run {begun} is unfinished and is not continued: training.learning_rate was 0.01 and is 0.005"
    assert why in said.lines and not any(line.startswith("continues") for line in said.lines)
    more = tmp_path / "more.jsonl"
    more.write_text(data.read_text() + '{"question": "New?", "answer": "Yes."}\n')
    said = Said()
    with pytest.raises(Stopped):
        go(wish.model_copy(update={"data": wish.data.model_copy(update={"path": more})}), tmp_path, said, lambda: True)
    assert f"run {begun} is unfinished and is not continued: the data's content changed" in said.lines
    said = Said()
    with pytest.raises(Stopped):
        go(wish, tmp_path, said, lambda: True)
    assert f"continues run {begun}, from its checkpoint of step 1" in said.lines
    record_property("times", "once each")


@pytest.mark.fault(
    what="SIGTERM, SIGINT",
    how="sent during training",
    lost="nothing: a checkpoint, exit code 3; a second SIGINT ends at once, with 130",
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_its_own_exit_code(
    base: Path, data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(tiny_model.toml(tiny_model.config(base, data, max_steps=5000)))
    log = tmp_path / "log"
    log.touch()

    def work() -> None:
        stream = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        from trainer.cli import main

        main(["train", "--config", str(path), "--store", str(tmp_path / "store")])

    pid = quick_programs.fork(work)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "store").glob("work/*/training.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3, log.read_text()
    assert "the same command continues from there" in log.read_text() and "Traceback" not in log.read_text()
    assert checkpoints(next((tmp_path / "store").glob("work/*/checkpoints")))


@pytest.mark.fault(
    what="loss that is not a number, loss that explodes",
    how="no number, or ten times the loss, from step 5 on",
    lost="the steps since the last good checkpoint, which stays; nothing is published, and the message says "
    "what to change",
)
@pytest.mark.parametrize(
    ("factor", "said"),
    [(float("nan"), "not a number at step 6"), (10.0, r"at step 7 and grows: a guess among all 354")],
)
def test_a_loss_that_breaks_down_stops_with_the_last_good_checkpoint(
    wish: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, said: str
) -> None:
    from trainer.backends import transformers_backend

    made = transformers_backend.TransformersBackend.trl_trainer

    def poisoned(self: Any, *arguments: Any) -> Any:
        trainer = made(self, *arguments)
        loss = trainer.compute_loss

        def compute_loss(*arguments: Any, **named: Any) -> Any:
            return loss(*arguments, **named) * (factor if trainer.state.global_step >= 5 else 1.0)

        trainer.compute_loss = compute_loss
        return trainer

    monkeypatch.setattr(transformers_backend.TransformersBackend, "trl_trainer", poisoned)
    with pytest.raises(Diverged, match=rf"{said}.*; the lowest was.*last good checkpoint.*checkpoint-4"):
        go(wish, tmp_path)
    assert [path.name for path in checkpoints(next(tmp_path.glob("work/*/checkpoints")))][-1] == "checkpoint-4"
    assert Store(tmp_path).runs() == []
