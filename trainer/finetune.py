"""Trains the model: one loop with progress, log, checkpoints, resume and stop, whatever the stack beneath."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import Base
from modelstore.files import sync, sync_tree, write_atomically
from trainer.backends import Backend
from trainer.checkpoints import NotFinite, checkpoints, is_finite, step_of
from trainer.config import TrainConfig, TrainingConfig
from trainer.divergence import Diverged, loss_guard
from trainer.machine import peak_memory_bytes, precision
from trainer.weights import read_tensors

if TYPE_CHECKING:
    from trainer.prepare import Prepared


@dataclass(frozen=True)
class Summary:
    """What the manifest says of the training. Memory is the process's peak resident set (device memory on a GPU).

    Of preference rows: the share whose chosen answer the adapter made more probable than the rejected one, against the
    base, and by how much (in nats, times dpo_beta), in the last line of the log.
    """

    backend: str
    weights: str
    processes: int
    steps: int
    seconds: float
    final_loss: float
    held_out_loss: float | None
    tokens_per_step: float
    tokens_per_s: float
    peak_memory_bytes: int
    resumed_from_step: int
    chosen_step: int
    reward_accuracy: float | None = None
    reward_margin: float | None = None


@dataclass
class Finetuned:
    """The trained model, ready to answer: with its adapter still separate, or with the folder of its fp32 `weights`."""

    model: Any
    summary: Summary
    weights: Path | None = None

    def save_adapter(self, folder: Path) -> None:
        """In peft's format, as safetensors; nothing where every weight was trained."""
        if not self.weights:
            self.model.save_pretrained(folder, safe_serialization=True)

    def release(self) -> None:
        """Give the model's memory back: the card is needed for the verification."""
        import torch

        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Stopped(Exception):
    """SIGTERM or SIGINT: a checkpoint was written and the next start continues there."""

    def __init__(self, step: int, total: int) -> None:
        super().__init__(f"Stopped at step {step} of {total}; the same command continues from there.")
        self.step, self.total = step, total


LOGGED = {  # trl's name -> ours, in training.jsonl
    "loss": "loss",
    "eval_loss": "held_out_loss",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "eval_rewards/accuracies": "held_out_reward_accuracy",
    "eval_rewards/margins": "held_out_reward_margin",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
}
OnStep = Callable[[int, int, dict[str, float]], None]


def finetune(
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
    """Train, resuming from the newest complete checkpoint below `work`/checkpoints; `work`/training.jsonl is the curve.
    Of processes that train together each calls it; the first one writes.

    `on_step(step, total, figures)` is called after every optimizer step; `should_stop()` is asked there too.
    Raises Stopped after writing a checkpoint, Diverged when the loss is not finite.
    """
    started = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # the libraries beneath write banners, and stdout is the result's
        trainer = backend.trl_trainer(config, base, tokenizer, prepared, work / "checkpoints")
        watch = _watch(trainer, config.training, work / "training.jsonl", on_step, should_stop)
        resumed = _train(trainer, watch, config.training, work)
        held_out = trainer.evaluate()["eval_loss"] if prepared.held_out else None
        backend.for_inference(trainer.model)
    summary = Summary(
        backend=backend.name,
        weights="fp32" if config.training.method == "full" else precision(config.model.weights),
        processes=trainer.args.world_size,
        steps=trainer.state.global_step,
        seconds=round(time.monotonic() - started, 1),
        final_loss=_last_loss(trainer, watch),
        held_out_loss=held_out,
        tokens_per_step=round(watch.step_tokens, 1),
        tokens_per_s=watch.tokens_per_s,
        peak_memory_bytes=peak_memory_bytes(),
        resumed_from_step=resumed,
        chosen_step=_chosen_step(trainer),
        reward_accuracy=_last_logged(trainer, "rewards/accuracies"),
        reward_margin=_last_logged(trainer, "rewards/margins"),
    )
    return Finetuned(trainer.model, summary, work / "finished" if config.training.method == "full" else None)


def _train(trainer: Any, watch: Any, training: TrainingConfig, work: Path) -> int:
    """Train to the end, or take what an interrupted run had finished; returns the step that was continued from."""
    from transformers import EarlyStoppingCallback, PrinterCallback

    trainer.remove_callback(PrinterCallback)  # it writes to stdout
    finished = work / "finished"
    if finished.exists():
        _load_finished(trainer, finished)
        return int(trainer.state.global_step)
    (work / "checkpoints").mkdir(parents=True, exist_ok=True)
    trainer.add_callback(watch)
    if training.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(training.early_stopping_patience))
    newest = checkpoints(work / "checkpoints")[-1:]
    resumed = step_of(newest[0]) if newest else 0
    if trainer.args.process_index == 0:
        _keep_log_until(work / "training.jsonl", resumed)
    with contextlib.suppress(NotFinite):
        trainer.train(resume_from_checkpoint=str(newest[0]) if newest else None)
    _refuse_diverged(trainer, watch, training, work / "checkpoints")
    if watch.was_stopped and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(trainer.state.global_step, trainer.state.max_steps)
    if trainer.args.process_index == 0:
        _keep_finished(trainer, finished)
    return resumed


def _refuse_diverged(trainer: Any, watch: Any, training: TrainingConfig, folder: Path) -> None:
    if watch.guard.verdict or not is_finite(trainer.model):
        good = checkpoints(folder)[-1:]
        raise Diverged(
            watch.guard.diagnosis(
                training.learning_rate, training.warmup_steps, watch.gradient_norm, str(good[0]) if good else ""
            )
        )


def _keep_finished(trainer: Any, folder: Path) -> None:
    """What an interrupted export continues from: the adapter or weights that were chosen, and how training went."""
    staging = folder.with_suffix(".staging")
    shutil.rmtree(staging, ignore_errors=True)
    trainer.model.save_pretrained(staging, safe_serialization=True)
    trainer.state.save_to_json(str(staging / "trainer_state.json"))
    sync_tree(staging)
    staging.rename(folder)
    sync(folder.parent)


def _load_finished(trainer: Any, folder: Path) -> None:
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
    from transformers import TrainerState

    if isinstance(trainer.model, PeftModel):
        set_peft_model_state_dict(trainer.model, load_peft_weights(str(folder), device="cpu"))
    else:
        trainer.model.load_state_dict({name: read() for name, read in read_tensors(folder)}, strict=False)
    trainer.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))


def _last_loss(trainer: Any, watch: Any) -> float:
    """Also of a training that an earlier process had finished."""
    logged = _last_logged(trainer, "loss")
    return logged if logged is not None and watch.last_loss != watch.last_loss else float(watch.last_loss)


def _last_logged(trainer: Any, name: str) -> float | None:
    return next((float(entry[name]) for entry in reversed(trainer.state.log_history) if name in entry), None)


def _chosen_step(trainer: Any) -> int:
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return int(Path(best).name.rpartition("-")[2]) if best else int(trainer.state.global_step)


def _keep_log_until(log_path: Path, step: int) -> None:
    """Drop the log lines after the checkpoint that training resumes from; they are written again.

    So does a last line that a full disk cut off: it lies behind the checkpoint.
    """
    lines = log_path.read_text().splitlines() if log_path.exists() else []
    kept = [line for line in lines if (logged := _step(line)) is not None and logged <= step]
    write_atomically(log_path, "".join(line + "\n" for line in kept).encode())


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return None


def _watch(
    trainer: Any,
    training: TrainingConfig,
    log_path: Path,
    on_step: OnStep,
    should_stop: Callable[[], bool],
) -> Any:
    from transformers import TrainerCallback

    lengths = trainer.row_lengths
    mean_step_tokens = sum(lengths) / len(lengths) * training.batch_size * training.gradient_accumulation_steps

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Turns trl's events into our log lines, our progress and our way of stopping."""

        step_tokens = mean_step_tokens
        last_loss = float("nan")
        tokens_per_s = 0.0
        gradient_norm = float("nan")
        guard = loss_guard(training, trainer.model.config.get_text_config().vocab_size)
        was_stopped = False
        began = 0.0
        first_step = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began, self.first_step = time.monotonic(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = state.global_step - self.first_step
            self.tokens_per_s = round(self.step_tokens * done / (time.monotonic() - self.began), 1)
            on_step(state.global_step, state.max_steps, {"loss": self.last_loss, "tokens_per_s": self.tokens_per_s})
            if should_stop():
                self.was_stopped = control.should_save = control.should_training_stop = True
            if control.should_save:
                control.should_log = True  # the loss is looked at before a checkpoint is kept

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs and "eval_loss" not in logs:
                return
            line = {"step": state.global_step, **_figures(logs)}
            line |= {"tokens_per_s": self.tokens_per_s, "memory_bytes": peak_memory_bytes()}
            if args.process_index == 0:
                with log_path.open("a") as log:
                    log.write(json.dumps(line) + "\n")
            self.last_loss = line.get("loss", self.last_loss)
            self.gradient_norm = line.get("grad_norm", self.gradient_norm)
            if "loss" in line:
                self.guard.see(state.global_step, line["loss"])
            if self.guard.is_suspect:
                control.should_save = False
                control.should_training_stop |= bool(self.guard.verdict)

    return Watch()


def _figures(logs: dict[str, float]) -> dict[str, float]:
    return {name: float(logs[key]) for key, name in LOGGED.items() if key in logs}
