"""A few real optimizer steps of a config, measured; nothing of them stays."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import Base
from trainer.backends import Backend
from trainer.config import TrainConfig
from trainer.plan_fit import changed

if TYPE_CHECKING:
    from trainer.finetune import OnStep, Summary
    from trainer.render import Example


@dataclass(frozen=True)
class Measured:
    """`seconds_per_step` is the median without the first step, which compiles and fills caches."""

    summary: Summary
    seconds_per_step: float


@dataclass(frozen=True)
class Trial:
    """What is the same for all measured steps of one training."""

    backend: Backend
    base: Base
    tokenizer: Any
    should_stop: Callable[[], bool]

    def run(
        self,
        config: TrainConfig,
        examples: Sequence[Example],
        steps: int,
        *,
        within: Path | None = None,
        on_step: OnStep = lambda *_: None,
    ) -> Measured:
        """At least two steps on `examples`, in a folder below `within` that goes away. Raises what `finetune` raises.

        The caller gives the memory back.
        """
        from trainer.across import finetuner
        from trainer.prepare import Prepared

        ends: list[float] = []

        def at_step(step: int, total: int, figures: dict[str, float]) -> None:
            _wait_for_device()
            ends.append(time.monotonic())
            on_step(step, total, figures)

        with tempfile.TemporaryDirectory(prefix="measured-steps-", dir=within) as work:
            summary = finetuner(config)(
                _of_few_steps(config, steps),
                self.backend,
                self.base,
                self.tokenizer,
                Prepared(train=list(examples), held_out=[], prompts=[], report=None),  # type: ignore[arg-type]
                work=Path(work),
                on_step=at_step,
                should_stop=self.should_stop,
            ).summary
        return Measured(summary, statistics.median(after - before for before, after in pairwise(ends)))


def _of_few_steps(config: TrainConfig, steps: int) -> TrainConfig:
    return changed(
        config,
        {
            "training.max_steps": steps,
            "training.logging_steps": 1,
            "training.save_steps": 1 << 30,
            "training.best_checkpoint": False,
            "training.early_stopping_patience": None,
            "training.tensorboard": False,
        },
    )


def _wait_for_device() -> None:
    """A GPU works on after the call that started it has returned."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
