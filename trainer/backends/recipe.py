"""What every training stack makes of a config in the same way: trl's settings, the rows, their order."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import UserError
from trainer.checkpoints import written_aside
from trainer.config import TrainConfig
from trainer.machine import multiplies_bf16

if TYPE_CHECKING:
    from trainer.prepare import Example, Prepared

IGNORED_LABEL = -100  # the label that PyTorch's cross entropy leaves out


class SeededOrder:
    """The order of rows in every epoch, from the seed and the epoch alone.

    trl's own order also depends on how often the global random generator was asked before, which a resume changes.
    `batch` rows of similar length stand together; 0 shuffles only. What lacks to a multiple of `shared` rows at the end
    is filled up with the index behind the last row: processes that share the rows need as many each.
    """

    WINDOW = 50  # batches within which rows are sorted by length

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, shared: int = 1) -> None:
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch, seed, 0
        self._filling = [len(lengths)] * (-len(lengths) % shared)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader."""
        self._epoch = int(epoch)

    def __len__(self) -> int:
        return len(self._lengths) + len(self._filling)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed} {self._epoch}")  # noqa: S311  an order, not a secret
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        if not self._batch:
            return iter(order + self._filling)
        span = self.WINDOW * self._batch
        windows = [sorted(order[i : i + span], key=self._lengths.__getitem__) for i in range(0, len(order), span)]
        batches = [window[i : i + self._batch] for window in windows for i in range(0, len(window), self._batch)]
        short = [batch for batch in batches if len(batch) < self._batch]  # stays last, so that no batch straddles
        full = [batch for batch in batches if len(batch) == self._batch]
        rng.shuffle(full)
        return iter([row for batch in [*full, *short, self._filling] for row in batch])


def seeded_trainer() -> Any:
    """trl's SFTTrainer (as the stack has patched it), seeded."""
    from trl import SFTTrainer

    return seeded(SFTTrainer)


def seeded(trl_trainer: Any) -> Any:
    """A trainer of trl with rows in SeededOrder and checkpoints that are whole.

    Where several processes train, the data set ends with a row without trained tokens, which evens out their shares.
    """

    class SeededTrainer(trl_trainer):  # type: ignore[misc]
        aside: Path | None = None
        train_dataset: Any

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.row_lengths = self.tokens_of_rows()
            if self.args.world_size > 1:
                self.train_dataset = _with_empty_row(self.train_dataset, self.row_lengths)

        def tokens_of_rows(self) -> list[int]:
            """How many tokens a training step computes for each row."""
            return [len(ids) for ids in self.train_dataset["input_ids"]]

        def create_optimizer(self, *arguments: Any, **named: Any) -> Any:
            if "8bit" in self.args.optim:
                queue_updates()
            return super().create_optimizer(*arguments, **named)

        def _get_output_dir(self, trial: Any) -> str:
            return str(self.aside or super()._get_output_dir(trial))

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            with written_aside(self) as self.aside:
                super()._save_checkpoint(model, trial)
            self.aside = None

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            grouped = self.args.train_sampling_strategy == "group_by_length"
            shared = self.args.per_device_train_batch_size * self.args.world_size
            batch = shared * self.args.gradient_accumulation_steps if grouped else 0
            return SeededOrder(self.row_lengths, batch, self.args.seed, shared if self.args.world_size > 1 else 1)

    return SeededTrainer


def queue_updates() -> None:
    """No wait for the GPU between two tensors' updates of the weights. bitsandbytes' optimizers wait after each, 448
    times a step for an adapter of Phi-3-mini, so the GPU waits for the next launch; only its paged kind needs that.
    TUNESHIP_WAITING_OPTIMIZER=1 keeps it, for comparison.
    """
    from bitsandbytes.optim import optimizer

    if os.environ.get("TUNESHIP_WAITING_OPTIMIZER") != "1":
        optimizer.sync_gpu = lambda _: None


def _with_empty_row(rows: Any, lengths: Sequence[int]) -> Any:
    """A copy of the shortest row, with no token to train, behind the others; trl would have dropped it."""
    from datasets import concatenate_datasets

    shortest = rows.select([min(range(len(lengths)), key=lengths.__getitem__)])
    empty = shortest.map(lambda row: {"labels": [IGNORED_LABEL] * len(row["labels"])}, features=rows.features)
    return concatenate_datasets([rows, empty])


def sft_config(config: TrainConfig, checkpoints: Path, *, evaluates: bool, **stack: Any) -> Any:
    """trl's own settings for this config; `stack` adds what only one training stack has."""
    from trl import SFTConfig

    packing = {"packing": config.training.packing, "eval_packing": False}
    return SFTConfig(**_settings(config, checkpoints, evaluates), **packing, **stack)


def dpo_config(config: TrainConfig, checkpoints: Path, *, evaluates: bool) -> Any:
    """trl's own settings for this config."""
    from trl import DPOConfig

    loss = {"beta": config.training.dpo_beta, "loss_type": [config.training.dpo_loss]}
    return DPOConfig(**_settings(config, checkpoints, evaluates), **loss)


def _settings(config: TrainConfig, checkpoints: Path, evaluates: bool) -> dict[str, Any]:
    """What is the same for answers and for pairs of them."""
    import torch

    training, cuda = config.training, torch.cuda.is_available()
    rows, passes = training.share()
    if training.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "training.tensorboard = true, and the package tensorboard is not in this environment: "
            f"{sys.executable} -m pip install tensorboard"
        )
    mixes = cuda and config.model.weights != "fp32"  # whose arithmetic is 32-bit too
    bf16 = mixes and multiplies_bf16()
    return {
        "output_dir": str(checkpoints),
        "max_length": config.model.max_length_tokens,
        "num_train_epochs": training.epochs or 1,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "ddp_find_unused_parameters": False,  # every adapter is used; looking for others breaks recomputation
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": "adamw_8bit" if training.optimizer == "adamw_8bit" else "adamw_torch_fused",
        "gradient_checkpointing": training.gradient_checkpointing != "off",
        "train_sampling_strategy": "group_by_length" if training.group_by_length else "random",
        "logging_steps": training.logging_steps,
        "save_steps": training.save_steps,
        "save_total_limit": training.keep_checkpoints,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": training.save_steps,
        "load_best_model_at_end": training.best_checkpoint,
        "metric_for_best_model": "eval_loss" if evaluates else None,
        "seed": training.seed,
        "data_seed": training.seed,
        "use_cpu": not cuda,
        "bf16": bf16,  # on a CPU the weights have their precision already and autocast would only add casts
        "fp16": mixes and not bf16,
        "prediction_loss_only": True,
        "logging_nan_inf_filter": False,  # it would show a loss that is not a number as an ordinary one
        "report_to": "tensorboard" if training.tensorboard else "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
    }


def datasets_of(prepared: Prepared, made_of: Callable[[Sequence[Example]], Any]) -> dict[str, Any]:
    """A trainer's two data sets."""
    held_out = made_of(prepared.held_out) if prepared.held_out else None
    return {"train_dataset": made_of(prepared.train), "eval_dataset": held_out}


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
