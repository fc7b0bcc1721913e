"""Unsloth: the same trl trainer with Unsloth's kernels, 4-bit loading and checkpointing beneath. The one file that
imports it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import Base
from trainer.backends.attention import attend_at_full_length, attend_in_one_call
from trainer.backends.last_product import leave_last_product_out
from trainer.backends.preferences import dpo_trainer, preference_dataset
from trainer.backends.recipe import dataset, datasets_of, dpo_config, seeded_trainer, sft_config
from trainer.config import TrainConfig
from trainer.targets import lora_targets

if TYPE_CHECKING:
    from trainer.prepare import Prepared

FILLED = 0.95  # share of the full length from which on rows count as filling it, and of the rows that are as long
RECOMPUTE: dict[str, bool | str] = {"off": False, "on": True, "unsloth": "unsloth"}


class UnslothBackend:
    """QLoRA and LoRA on an NVIDIA GPU. Needs no network: the base is a local folder and nothing is looked up."""

    name = "unsloth"

    def __init__(self, cache: Path) -> None:
        _keep_offline(cache)
        with contextlib.redirect_stdout(sys.stderr):
            import unsloth  # noqa: F401  before transformers and trl, which it patches

    def trl_trainer(
        self, config: TrainConfig, base: Base, tokenizer: Any, prepared: Prepared, checkpoints: Path
    ) -> Any:
        model = _with_adapter(config, _load(config, base), base.folder("hf"))
        if config.training.gradient_checkpointing != "off":
            _shorten_recompute(model)
        evaluates = bool(prepared.held_out)
        if config.training.method == "dpo":
            trainer, made_of = dpo_trainer(), preference_dataset
            settings = dpo_config(config, checkpoints, evaluates=evaluates)
        else:
            trainer, made_of, padding_free = seeded_trainer(), dataset, _padding_free(config, prepared)
            settings = sft_config(config, checkpoints, evaluates=evaluates, padding_free=padding_free)
            if _have_one_length(prepared):
                attend_at_full_length()
            if padding_free is not False and config.model.weights != "fp32" and attend_in_one_call():
                print("Rows that share a batch attend in one call.", file=sys.stderr)
        return trainer(model=model, args=settings, processing_class=tokenizer, **datasets_of(prepared, made_of))

    def for_inference(self, model: Any) -> None:
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(model)


def _keep_offline(cache: Path) -> None:
    """Unsloth reads these when it is imported: no statistics, no clone of llama.cpp, compiled code in the cache, also
    torch's and Triton's; checkpoints come back from main memory while the block after theirs is computed again.
    """
    cache = cache.absolute()
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_AUTO_INSTALL", "0")
    os.environ.setdefault("UNSLOTH_LLAMA_CPP_OFFLINE", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache / "unsloth_compiled"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    os.environ.setdefault("UNSLOTH_GC_PREFETCH", "1")


def _load(config: TrainConfig, base: Base) -> Any:
    import torch
    from unsloth import FastLanguageModel

    types = {"fp16": torch.float16, "fp32": torch.float32}  # otherwise bf16 where the card has it, fp16 where not
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(base.folder("hf")),
        max_seq_length=config.model.max_length_tokens,
        dtype=types.get(config.model.weights),
        load_in_4bit=config.model.weights == "4bit",
    )
    return model


def _with_adapter(config: TrainConfig, model: Any, folder: Path) -> Any:
    from unsloth import FastLanguageModel

    tuned = FastLanguageModel.get_peft_model(
        model,
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=lora_targets(config.lora.target_modules, folder),
        bias="none",
        use_gradient_checkpointing=RECOMPUTE[config.training.gradient_checkpointing],
        random_state=config.training.seed,
    )
    if config.model.weights == "fp32":  # else its trainer multiplies in bf16, where nothing is asked of it
        tuned._unsloth_forced_float32 = True
    return tuned


def _shorten_recompute(model: Any) -> None:
    """TUNESHIP_WHOLE_RECOMPUTE=1 keeps Unsloth's way, for comparison."""
    model.for_training()  # as its trainer does later: else nothing is checkpointed yet
    if os.environ.get("TUNESHIP_WHOLE_RECOMPUTE") != "1" and leave_last_product_out(model):
        print("Blocks are computed again without their last product.", file=sys.stderr)


def _padding_free(config: TrainConfig, prepared: Prepared) -> bool | None:
    """False where rows fill the length: the padded path compiles whole blocks. Otherwise None, which leaves
    the choice to Unsloth: padding-free where the model can.
    """
    if config.training.batches != "auto":
        return config.training.batches == "padding_free"
    lengths = [len(example.input_ids) for example in prepared.train]
    filled = sum(lengths) / (len(lengths) * config.model.max_length_tokens)
    return False if filled >= FILLED and not config.training.packing else None


def _have_one_length(prepared: Prepared) -> bool:
    """Nearly all rows the longest one's, and so nearly every batch; each other length costs a plan of cuDNN."""
    lengths = [len(example.input_ids) for example in prepared.train]
    return lengths.count(max(lengths)) >= FILLED * len(lengths)
