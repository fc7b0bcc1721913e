"""One of the processes that train together, started by trainer.across: the usual loop on this process's card.

usage (through torchrun): python -m trainer.ranks WORK

Standard output belongs to the parent: one JSON object a line, steps from the first process, endings from any.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelstore import Store, UserError
from modelstore.files import write_atomically
from trainer.across import JOB, STOP, SUMMARY
from trainer.children import end_with_parent
from trainer.divergence import Diverged
from trainer.finetune import Stopped, finetune
from trainer.machine import local_rank

LONGEST_MESSAGE = 1800  # characters; a line of less than 4096 bytes is written whole, whoever else writes

Say = Callable[..., None]


def main() -> None:
    """Ends with code 0 also when it was stopped: what the code would say, the ending says better."""
    end_with_parent()
    say = _speaker()
    try:
        _train(Path(sys.argv[1]), say)
    except Stopped as stopped:
        say("Stopped", step=stopped.step, total=stopped.total)
    except (Diverged, UserError) as error:
        say(type(error).__name__, message=str(error)[:LONGEST_MESSAGE])
        sys.exit(1)
    except Exception as error:
        from trainer.out_of_memory import is_out_of_memory

        traceback.print_exc()
        kind = "MemoryError" if is_out_of_memory(error) else "failed"
        said = str(error) if kind == "MemoryError" else traceback.format_exc()
        say(kind, message=said[-LONGEST_MESSAGE:])
        sys.exit(1)


def _train(work: Path, say: Say) -> None:
    from trainer.backends import choose_backend
    from trainer.config import TrainConfig
    from trainer.pipeline import load_tokenizer
    from trainer.prepare import Example, Prepared

    _join()
    job = json.loads((work / JOB).read_text())
    config, store = TrainConfig.model_validate(job["config"]), Store(Path(job["store"]))
    train, held_out = ([Example(**row) for row in job[name]] for name in ("train", "held_out"))
    base = store.base(job["base"])
    first = local_rank() == 0
    summary = finetune(
        config,
        choose_backend(config, store.cache)[0],
        base,
        load_tokenizer(base),
        Prepared(train=train, held_out=held_out, prompts=[], report=None),  # type: ignore[arg-type]
        work=work,
        on_step=lambda step, total, figures: say("step", step=step, total=total, figures=figures) if first else None,
        should_stop=lambda: _any((work / STOP).exists()),
    ).summary
    if first:
        write_atomically(work / SUMMARY, json.dumps(asdict(summary)).encode())
    _leave()


def _join() -> None:
    """Take this process's card and meet the others."""
    import torch
    import torch.distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        torch.distributed.init_process_group("nccl", device_id=torch.device("cuda", local_rank()))
    else:
        torch.distributed.init_process_group("gloo")


def _leave() -> None:
    import torch.distributed

    torch.distributed.barrier()  # the first one has written
    torch.distributed.destroy_process_group()


def _any(flag: bool) -> bool:
    """Whether one of the processes says so. They ask together after every step, so they stop at the same one."""
    import torch
    import torch.distributed

    told = torch.tensor(int(flag), device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return bool(told.item())


def _speaker() -> Say:
    """Keeps standard output to itself; whatever the libraries print goes to standard error."""
    channel = os.dup(1)
    os.dup2(2, 1)

    def say(kind: str, **what: Any) -> None:
        os.write(channel, (json.dumps({"kind": kind, **what}) + "\n").encode())

    return say


if __name__ == "__main__":
    from trainer.cli import prepare_process

    prepare_process()
    main()
