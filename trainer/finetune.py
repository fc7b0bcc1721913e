"""Fine-tunes the base model with LoRA on tokenised examples: transformers + peft + trl, on a CPU or any accelerator."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import Base, UserError
from trainer.config import LoraConfig, TrainConfig, TrainingConfig
from trainer.machine import peak_memory_bytes

if TYPE_CHECKING:
    from trainer.prepare import Example, Prepared

IGNORED_LABEL = -100  # the label that PyTorch's cross entropy leaves out


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


def finetune(  # noqa: PLR0913
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
    from transformers.trainer_utils import get_last_checkpoint

    checkpoints.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    trainer = _sft_trainer(config, _load_base(config, base), tokenizer, prepared, checkpoints)
    watch = _watch(trainer, config.training, prepared, log_path, on_step, should_stop)
    trainer.add_callback(watch)
    resume_from = get_last_checkpoint(str(checkpoints))
    resumed = int(Path(resume_from).name.rpartition("-")[2]) if resume_from else 0
    _keep_log_until(log_path, resumed)
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


def _load_base(config: TrainConfig, base: Base) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if config.model.weights == "4bit" or config.training.optimizer == "adamw_8bit":
        raise UserError(
            'weights = "4bit" and optimizer = "adamw_8bit" need the CUDA backend, and this machine has no NVIDIA GPU. '
            'On a CPU use weights = "bf16" and optimizer = "adamw", as configs/demo.toml does.'
        )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.model.weights]
    model = AutoModelForCausalLM.from_pretrained(base.folder("hf"), dtype=dtype, use_safetensors=True)
    model.config.use_cache = False
    return model


def _sft_trainer(config: TrainConfig, model: Any, tokenizer: Any, prepared: Prepared, checkpoints: Path) -> Any:
    from trl import SFTTrainer

    return SFTTrainer(
        model=model,
        args=_sft_config(config, checkpoints, bool(prepared.held_out)),
        processing_class=tokenizer,
        train_dataset=_dataset(prepared.train),
        eval_dataset=_dataset(prepared.held_out) if prepared.held_out else None,
        peft_config=_lora(config.lora),
    )


def _lora(lora: LoraConfig) -> Any:
    from peft import LoraConfig as PeftLora

    return PeftLora(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _sft_config(config: TrainConfig, checkpoints: Path, evaluates: bool) -> Any:
    import torch
    from trl import SFTConfig

    training = config.training
    return SFTConfig(
        output_dir=str(checkpoints),
        max_length=config.model.max_length_tokens,
        num_train_epochs=training.epochs or 1,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        gradient_checkpointing=training.gradient_checkpointing != "off",
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        logging_steps=training.logging_steps,
        save_steps=training.save_steps,
        save_total_limit=training.keep_checkpoints,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=training.save_steps,
        seed=training.seed,
        data_seed=training.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,  # the weights have their precision already; autocast would add casts
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _dataset(examples: Sequence[Example]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [example.input_ids for example in examples],
            "labels": [_labels(example) for example in examples],
        }
    )


def _labels(example: Example) -> list[int]:
    return [
        token if trained else IGNORED_LABEL
        for token, trained in zip(example.input_ids, example.completion_mask, strict=True)
    ]


def _keep_log_until(log_path: Path, step: int) -> None:
    """Drop the log lines after the checkpoint that training resumes from; they are written again."""
    if log_path.exists():
        lines = [line for line in log_path.read_text().splitlines() if json.loads(line)["step"] <= step]
        log_path.write_text("".join(line + "\n" for line in lines))


def _watch(  # noqa: PLR0913
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


def _figures(logs: dict[str, float]) -> dict[str, float]:
    names = {"loss": "loss", "eval_loss": "held_out_loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
    return {names[name]: float(value) for name, value in logs.items() if name in names}
