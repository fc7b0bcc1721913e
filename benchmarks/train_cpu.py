#!/usr/bin/env python3
"""Measures training on a CPU: the kit's demo config against TRL and PEFT as they come, and each ingredient by itself.

usage: .venv/trainer/bin/python benchmarks/train_cpu.py RESULT.json [--steps 4] [--bf16-steps 0] [--only VARIANT]

All variants stand in one process and take their steps in turn, so that other load on the machine falls on each alike.
Counted is the process's CPU time of forward, backward, clipping and optimizer; the first step of each is left out.
Useful tokens are those of the rows, without padding. `--bf16-steps` also takes so many steps of TRL's real default,
bf16 autocast, which a CPU without 16-bit kernels does at a fortieth of the speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.cli import prepare_process  # noqa: E402

prepare_process()

from modelstore import Store  # noqa: E402
from trainer.backends.recipe import dataset, seeded_trainer  # noqa: E402
from trainer.backends.transformers_backend import TransformersBackend, _lora  # noqa: E402
from trainer.bases import resolve_base  # noqa: E402
from trainer.config import load_config  # noqa: E402
from trainer.machine import hardware, package_versions  # noqa: E402
from trainer.pipeline import load_tokenizer  # noqa: E402
from trainer.prepare import prepare  # noqa: E402
from trainer.rows import read_rows  # noqa: E402

KIT = "the kit"


@dataclasses.dataclass
class Variant:
    """A trainer with what its steps have cost so far."""

    name: str
    trainer: Any
    batches: Iterator[Any] = dataclasses.field(init=False)
    cpu_s: float = 0.0
    useful_tokens: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.trainer.args
        if settings.activation_checkpointing:  # as its own loop does before the first step
            self.trainer.model.activation_checkpointing_enable(settings.activation_checkpointing_kwargs)
        self.trainer.create_optimizer()
        self.batches = iter(self.trainer.get_train_dataloader())

    def step(self) -> None:
        """One optimizer step, as trl takes it."""
        import torch

        batch, trainer = next(self.batches), self.trainer
        began = time.process_time()
        trained = (batch["labels"][:, 1:] != -100).sum()
        loss = trainer.training_step(trainer.model, batch, num_items_in_batch=trained)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        took = time.process_time() - began
        if self.losses:
            self.cpu_s += took
            self.useful_tokens += int(batch["attention_mask"].sum())
        self.losses.append(round(float(loss), 6))

    def figures(self) -> dict[str, Any]:
        """What goes into the result."""
        steps = len(self.losses) - 1
        return {
            "name": self.name,
            "useful_tokens_per_cpu_s": round(self.useful_tokens / self.cpu_s, 1),
            "cpu_s_per_step": round(self.cpu_s / steps, 3),
            "steps": steps,
            "losses": self.losses,
        }


class Builder:
    """Trainers over the same rows, model, LoRA shape, batch size and learning rate."""

    def __init__(self, store: Store, work: Path) -> None:
        self.work = work
        keys = {"training.max_steps": 100, "training.save_steps": 1000}
        self.config = load_config(ROOT / "configs" / "demo.toml", keys)
        self.base = resolve_base(self.config.model.base, store)
        self.tokenizer = load_tokenizer(self.base)
        rows = read_rows(ROOT / self.config.data.path, max_bad_share=0.01)
        length = self.config.model.max_length_tokens
        self.prepared = prepare(
            rows, self.tokenizer, max_length_tokens=length, held_out_share=0.0, seed=3407, questions=None
        )

    def kit(self, *, joins: bool = True, trl_loss: bool = False, **training: Any) -> Any:
        """The kit's own trainer, or that with one ingredient changed."""
        import torch

        torch.manual_seed(3407)
        changed = self.config.model_copy(update={"training": self.config.training.model_copy(update=training)})
        made = TransformersBackend().trl_trainer(changed, self.base, self.tokenizer, self.prepared, self.work)
        if trl_loss:
            made.__class__ = seeded_trainer()
        elif not joins:
            made.joins = False
        return made

    def plain(self, **settings: Any) -> Any:
        """trl's SFTTrainer with its own defaults where the comparison does not need another value."""
        import torch
        from trl import SFTConfig, SFTTrainer

        torch.manual_seed(3407)
        training = self.config.training
        arguments = SFTConfig(
            output_dir=str(self.work),
            per_device_train_batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            use_cpu=True,
            dataloader_pin_memory=False,
            **settings,
        )
        return SFTTrainer(
            model=str(self.base.folder("hf")),
            args=arguments,
            processing_class=self.tokenizer,
            train_dataset=dataset(self.prepared.train),
            peft_config=_lora(self.config.lora, self.base.folder("hf")),
        )


def variants(builder: Builder) -> dict[str, Callable[[], Any]]:
    """By name; the kit first, then one ingredient less at a time, then the plain stack."""
    return {
        KIT: builder.kit,
        "the kit, shared beginnings computed for every row": lambda: builder.kit(joins=False),
        "the kit with trl's loss": lambda: builder.kit(trl_loss=True),
        "the kit with checkpointing": lambda: builder.kit(gradient_checkpointing="on"),
        "TRL and PEFT, fp32": lambda: builder.plain(bf16=False),
    }


def measure(store: Store, steps: int, bf16_steps: int, only: list[str]) -> list[dict[str, Any]]:
    """Every variant's figures."""
    with tempfile.TemporaryDirectory() as work:
        builder = Builder(store, Path(work))
        made = [Variant(name, build()) for name, build in variants(builder).items() if not only or name in only]
        for _ in range(steps + 1):
            for variant in made:
                variant.step()
        if bf16_steps:
            made.append(Variant("TRL and PEFT, their default bf16 autocast", builder.plain()))
            for _ in range(bf16_steps + 1):
                made[-1].step()
    return [variant.figures() for variant in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--bf16-steps", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], metavar="VARIANT")
    parser.add_argument("--store", type=Path, default=ROOT / "models")
    arguments = parser.parse_args()
    store = Store(arguments.store)
    store.create()
    load_before = os.getloadavg()[0]
    found = measure(store, arguments.steps, arguments.bf16_steps, arguments.only)
    result = {
        "command": f"benchmarks/train_cpu.py benchmarks/results/train-cpu.json --steps {arguments.steps}"
        + (f" --bf16-steps {arguments.bf16_steps}" if arguments.bf16_steps else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "packages": package_versions(),
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "variants": found,
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
