"""Trains in several processes, one for each GPU: torchrun starts trainer.ranks, and their result is taken up here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modelstore import Base, UserError
from modelstore.files import write_atomically
from modelstore.machine import cpu_threads
from trainer.backends import Backend
from trainer.children import bound
from trainer.config import TrainConfig, config_dict
from trainer.divergence import Diverged
from trainer.finetune import Finetuned, OnStep, Stopped, Summary, finetune

if TYPE_CHECKING:
    from trainer.prepare import Prepared

JOB, STOP, SUMMARY, LOG = "ranks.json", "ranks.stop", "ranks-summary.json", "ranks.log"


class RanksFailed(Exception):
    """A process of the training broke down; what it said is in the message."""


def finetuner(config: TrainConfig) -> Callable[..., Finetuned]:
    """`finetune`, or its like for several processes."""
    return finetune_across if config.training.processes > 1 else finetune


def finetune_across(
    config: TrainConfig,
    backend: Backend,
    base: Base,
    tokenizer: Any,
    prepared: Prepared,
    *,
    work: Path,
    on_step: OnStep,
    should_stop: Callable[[], bool],
) -> Finetuned:
    """As `finetune`, in `training.processes` processes; what they have finished is loaded into this one.

    Raises what they raised: Stopped, Diverged, UserError, MemoryError; RanksFailed for anything else.
    """
    if not (work / "finished").exists():
        _write_job(config, base, prepared, work)
        _train(config.training.processes, work, on_step, should_stop)
    tuned = finetune(config, backend, base, tokenizer, prepared, work=work, on_step=on_step, should_stop=should_stop)
    theirs = Summary(**json.loads((work / SUMMARY).read_text())) if (work / SUMMARY).exists() else tuned.summary
    return replace(tuned, summary=replace(theirs, held_out_loss=tuned.summary.held_out_loss))


def ranks_argv(processes: int, work: Path) -> list[str]:
    """The command that starts them. The address spares it a look-up of the host's name, which containers may lack."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [*torchrun, "--nproc-per-node", str(processes), "-m", "trainer.ranks", str(work)]


def _write_job(config: TrainConfig, base: Base, prepared: Prepared, work: Path) -> None:
    """The rows as they were prepared here: the data file may change."""
    job = {
        "config": config_dict(config),
        "store": str(base.path.parents[1].absolute()),
        "base": base.id,
        "train": [asdict(example) for example in prepared.train],
        "held_out": [asdict(example) for example in prepared.held_out],
    }
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(work / JOB, json.dumps(job).encode())
    for name in (STOP, SUMMARY):
        (work / name).unlink(missing_ok=True)


def _train(processes: int, work: Path, on_step: OnStep, should_stop: Callable[[], bool]) -> None:
    """In a session of its own, so that Ctrl-C reaches this process only, which asks them to stop."""
    threads = max(1, cpu_threads() // processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    argv = bound(ranks_argv(processes, work))
    endings: list[Mapping[str, Any]] = []
    with (
        (work / LOG).open("w") as log,
        subprocess.Popen(
            argv, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        ) as ranks,
    ):
        assert ranks.stdout is not None  # noqa: S101
        try:
            for line in ranks.stdout:
                event = _parsed(line)
                if event.get("kind") == "step":
                    on_step(event["step"], event["total"], event["figures"])
                    if should_stop():
                        (work / STOP).touch()
                elif event:
                    endings.append(event)
            code = ranks.wait()
        finally:
            ranks.kill()  # and with it, as they are bound to it, the processes that it started
    if endings or code or not (work / "finished").exists():
        _raise(endings[0] if endings else {}, code, work / LOG)


def _parsed(line: str) -> dict[str, Any]:
    try:
        event: Any = json.loads(line)
    except ValueError:  # a library's own words
        return {}
    return event if isinstance(event, dict) else {}


def _raise(ending: Mapping[str, Any], code: int, log: Path) -> NoReturn:
    """The first that broke down says why; the others only miss it."""
    kind, message = ending.get("kind"), ending.get("message", "")
    if kind == "Stopped":
        raise Stopped(ending["step"], ending["total"])
    if kind == "Diverged":
        raise Diverged(message)
    if kind == "UserError":
        raise UserError(message)
    if kind == "MemoryError":
        raise MemoryError(message)
    if kind:
        raise RanksFailed(f"A process of the training broke down:\n{message}\nMore is in {log}.")
    raise RanksFailed(
        f"The processes of the training ended without a word (code {code}), as when the system ends one because memory "
        f"is short. The same command continues from the last checkpoint; their output is in {log}."
    )
