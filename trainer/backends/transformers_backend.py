"""transformers + peft + trl."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import Base, UserError
from trainer.config import LoraConfig, TrainConfig

if TYPE_CHECKING:
    from trainer.prepare import Example, Prepared

IGNORED_LABEL = -100  # the label that PyTorch's cross entropy leaves out


class TransformersBackend:
    """The plain stack: transformers, peft and trl, on a CPU or any accelerator."""

    name = "transformers"

    def sft_trainer(
        self, config: TrainConfig, base: Base, tokenizer: Any, prepared: Prepared, checkpoints: Path
    ) -> Any:
        return _answer_loss_trainer()(
            model=_load_base(config, base),
            args=sft_config(config, checkpoints, evaluates=bool(prepared.held_out)),
            processing_class=tokenizer,
            train_dataset=dataset(prepared.train),
            eval_dataset=dataset(prepared.held_out) if prepared.held_out else None,
            peft_config=_lora(config.lora),
        )


class SeededOrder:
    """The order of rows in every epoch, from the seed and the epoch alone.

    trl's own order also depends on how often the global random generator was asked before, which a resume changes.
    `batch` rows of similar length stand together; 0 shuffles only.
    """

    WINDOW = 50  # batches within which rows are sorted by length

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader."""
        self._epoch = int(epoch)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed} {self._epoch}")  # noqa: S311  an order, not a secret
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        if not self._batch:
            return iter(order)
        span = self.WINDOW * self._batch
        windows = [sorted(order[i : i + span], key=self._lengths.__getitem__) for i in range(0, len(order), span)]
        batches = [window[i : i + self._batch] for window in windows for i in range(0, len(window), self._batch)]
        short = [batch for batch in batches if len(batch) < self._batch]  # stays last, so that no batch straddles
        full = [batch for batch in batches if len(batch) == self._batch]
        rng.shuffle(full)
        return iter([row for batch in [*full, *short] for row in batch])


def _answer_loss_trainer() -> Any:
    """trl's SFTTrainer with logits, and so their gradient, only where some row of the batch has a trained token.

    The loss is the same. At a vocabulary of 49,152 trl's own loss took 38% of a CPU step (profiled).
    """
    from torch.nn.functional import cross_entropy
    from trl import SFTTrainer

    class AnswerLossTrainer(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
            grouped = self.args.train_sampling_strategy == "group_by_length"
            batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            return SeededOrder(lengths, batch if grouped else 0, self.args.seed)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            targets = inputs["labels"][:, 1:]
            columns = (targets != IGNORED_LABEL).any(dim=0).nonzero().squeeze(1)
            kept = targets[:, columns]
            outputs = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=columns
            )
            logits = outputs.logits.flatten(0, 1).float()
            total = cross_entropy(logits, kept.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
            loss = total / (num_items_in_batch if num_items_in_batch is not None else (kept != IGNORED_LABEL).sum())
            return (loss, outputs) if return_outputs else loss

    return AnswerLossTrainer


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


def sft_config(config: TrainConfig, checkpoints: Path, *, evaluates: bool) -> Any:
    """trl's own settings for this config."""
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
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def dataset(examples: Sequence[Example]) -> Any:
    """Token ids with labels: the ids themselves where a token is trained, -100 elsewhere."""
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
