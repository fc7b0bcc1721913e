"""Checkpoints that are whole or not there: written aside, flushed, renamed. The library writes them in place."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelstore.files import sync, sync_tree

ASIDE = ".writing"
STATE = "trainer_state.json"
NAME = re.compile(r"^checkpoint-(\d+)$")


class NotFinite(Exception):
    """The adapter holds a value that is not a number, so it is not worth a checkpoint."""


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.match(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was written."""
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def written_aside(trainer: Any) -> Iterator[Path]:
    """A folder to write one checkpoint into; with the end of the block it appears under its own name.

    Processes that train together call it together: each writes its part, the first one moves the whole.
    Raises NotFinite before anything is written: the last good checkpoint stays the newest.
    """
    if not is_finite(trainer.model):
        raise NotFinite
    folder = Path(trainer.args.output_dir)
    aside = folder / ASIDE
    if trainer.args.process_index == 0:
        shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
        aside.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    yield aside
    name = f"checkpoint-{trainer.state.global_step}"
    if trainer.state.best_model_checkpoint == str(aside / name):
        trainer.state.best_model_checkpoint = str(folder / name)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.process_index == 0:
        _publish(trainer, aside, name)
    trainer.accelerator.wait_for_everyone()


def _publish(trainer: Any, aside: Path, name: str) -> None:
    folder = aside.parent
    trainer.state.save_to_json(str(aside / name / STATE))  # with the name that the best one has from now on
    sync_tree(aside)
    if not (folder / name).exists():
        (aside / name).rename(folder / name)
    sync(folder)
    shutil.rmtree(aside)
    _keep_newest(folder, trainer.args.save_total_limit, trainer.state.best_model_checkpoint)


def _keep_newest(folder: Path, limit: int, best: str | None) -> None:
    kept = checkpoints(folder)[-limit:]
    for path in checkpoints(folder):
        if path not in kept and str(path) != best:
            shutil.rmtree(path)


def is_finite(model: Any) -> bool:
    """Whether every trained weight is a number."""
    import torch

    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters() if weight.requires_grad)
