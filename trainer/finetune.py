"""Trains the adapter: one loop with progress, log, checkpoints, resume and stop, whatever the stack beneath."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import Base
from trainer.backends import choose_backend
from trainer.config import TrainConfig, TrainingConfig
from trainer.machine import peak_memory_bytes

if TYPE_CHECKING:
    from trainer.prepare import Prepared


@dataclass(frozen=True)
class Summary:
    """What the manifest says of the training. Memory is the process's peak resident set (device memory on a GPU)."""

    steps: int
    seconds: float
    final_loss: float
    held_out_loss: float | None
    tokens_per_s: float
    peak_memory_bytes: int
    resumed_from_step: int


@dataclass(frozen=True)
class Finetuned:
    """The trained model with its adapter still separate."""

    model: Any
    summary: Summary


class Stopped(Exception):
    """SIGTERM or SIGINT: a checkpoint was written and the next start continues there."""

    def __init__(self, step: int, total: int) -> None:
        super().__init__(f"Stopped at step {step} of {total}; the same command continues from there.")


class Diverged(Exception):
    """The loss is not a number any more."""

    def __init__(self, step: int, learning_rate: float) -> None:
        super().__init__(
            f"The loss is not a number at step {step}. Lower training.learning_rate (now {learning_rate:g}) or raise "
            "training.warmup_steps, then train again; nothing was published."
        )


OnStep = Callable[[int, int, dict[str, float]], None]


def finetune(
    config: TrainConfig,
    base: Base,
    tokenizer: Any,
    prepared: Prepared,
    *,
    checkpoints: Path,
    log_path: Path,
    on_step: OnStep,
    should_stop: Callable[[], bool],
) -> Finetuned:
    """Train, resuming from the newest complete checkpoint below `checkpoints`.

    `on_step(step, total, figures)` is called after every optimizer step; `should_stop()` is asked there too.
    Raises Stopped after writing a checkpoint, Diverged when the loss is not finite.
    """
    from transformers import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    checkpoints.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    backend = choose_backend(config)
    trainer = backend.sft_trainer(config, base, tokenizer, prepared, checkpoints)
    watch = _watch(trainer, config.training, prepared, log_path, on_step, should_stop)
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)  # it writes to stdout
    resume_from = get_last_checkpoint(str(checkpoints))
    resumed = int(Path(resume_from).name.rpartition("-")[2]) if resume_from else 0
    _keep_log_until(log_path, resumed)
    if resume_from and resumed >= watch.total_steps:
        _load_finished(trainer, resume_from)
    else:
        trainer.train(resume_from_checkpoint=resume_from)
    if watch.diverged:
        raise Diverged(trainer.state.global_step, config.training.learning_rate)
    if trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(trainer.state.global_step, trainer.state.max_steps)
    held_out = trainer.evaluate()["eval_loss"] if prepared.held_out else None
    summary = Summary(
        steps=trainer.state.global_step,
        seconds=round(time.monotonic() - started, 1),
        final_loss=watch.last_loss,
        held_out_loss=held_out,
        tokens_per_s=watch.tokens_per_s,
        peak_memory_bytes=peak_memory_bytes(),
        resumed_from_step=resumed,
    )
    return Finetuned(trainer.model, summary)


def _load_finished(trainer: Any, checkpoint: str) -> None:
    """Training had ended when the run was interrupted: take its last checkpoint as it is."""
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import TrainerState

    set_peft_model_state_dict(trainer.model, load_peft_weights(checkpoint, device="cpu"))
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))


def _keep_log_until(log_path: Path, step: int) -> None:
    """Drop the log lines after the checkpoint that training resumes from; they are written again."""
    log_path.touch()
    if log_path.stat().st_size:
        lines = [line for line in log_path.read_text().splitlines() if json.loads(line)["step"] <= step]
        log_path.write_text("".join(line + "\n" for line in lines))


def _watch(
    trainer: Any,
    training: TrainingConfig,
    prepared: Prepared,
    log_path: Path,
    on_step: OnStep,
    should_stop: Callable[[], bool],
) -> Any:
    from transformers import TrainerCallback

    row_tokens = sum(len(example.input_ids) for example in prepared.train) / len(prepared.train)
    step_tokens = row_tokens * training.batch_size * training.gradient_accumulation_steps

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Turns trl's events into our log lines, our progress and our way of stopping."""

        last_loss = float("nan")
        tokens_per_s = 0.0
        diverged = False
        began = 0.0
        first_step = 0
        total_steps = _total_steps(training, len(prepared.train))

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began, self.first_step = time.monotonic(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = state.global_step - self.first_step
            self.tokens_per_s = round(step_tokens * done / (time.monotonic() - self.began), 1)
            on_step(state.global_step, state.max_steps, {"loss": self.last_loss, "tokens_per_s": self.tokens_per_s})
            if should_stop():
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs and "eval_loss" not in logs:
                return
            line = {"step": state.global_step, **_figures(logs)}
            line |= {"tokens_per_s": self.tokens_per_s, "memory_bytes": peak_memory_bytes()}
            with log_path.open("a") as log:
                log.write(json.dumps(line) + "\n")
            self.last_loss = line.get("loss", self.last_loss)
            if line.get("loss") is not None and line["loss"] != line["loss"]:
                self.diverged = control.should_training_stop = True

    return Watch()


def _total_steps(training: TrainingConfig, rows: int) -> int:
    """Optimizer steps of the whole training."""
    per_epoch = math.ceil(math.ceil(rows / training.batch_size) / training.gradient_accumulation_steps)
    return training.max_steps or math.ceil(per_epoch * (training.epochs or 1))


def _figures(logs: dict[str, float]) -> dict[str, float]:
    names = {"loss": "loss", "eval_loss": "held_out_loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
    return {names[name]: float(value) for name, value in logs.items() if name in names}
