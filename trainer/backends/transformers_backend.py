"""transformers + peft + trl."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import Base, UserError
from trainer.backends.answer_loss import answer_loss_trainer
from trainer.backends.preferences import dpo_trainer, preference_dataset
from trainer.backends.recipe import dataset, datasets_of, dpo_config, sft_config
from trainer.config import LoraConfig, TrainConfig
from trainer.machine import local_rank, precision
from trainer.targets import lora_targets

if TYPE_CHECKING:
    from trainer.prepare import Prepared


class TransformersBackend:
    """The plain stack: transformers, peft and trl, on a CPU or any accelerator."""

    name = "transformers"

    def trl_trainer(
        self, config: TrainConfig, base: Base, tokenizer: Any, prepared: Prepared, checkpoints: Path
    ) -> Any:
        _refuse_unfit(config)
        if config.training.method == "dpo":
            trainer, settings, made_of = dpo_trainer(), dpo_config, preference_dataset
        else:
            trainer, settings, made_of = answer_loss_trainer(), sft_config, dataset
        return trainer(
            model=_load_base(config, base),
            args=settings(config, checkpoints, evaluates=bool(prepared.held_out)),
            processing_class=tokenizer,
            **datasets_of(prepared, made_of),
            peft_config=None if config.training.method == "full" else _lora(config.lora, base.folder("hf")),
        )

    def for_inference(self, model: Any) -> None:
        model.eval()


def _refuse_unfit(config: TrainConfig) -> None:
    import torch

    if config.training.packing or config.training.gradient_checkpointing == "unsloth":
        raise UserError(
            'packing = true and gradient_checkpointing = "unsloth" need the unsloth backend, and this run uses '
            'transformers. Take packing = false and gradient_checkpointing = "on".'
        )
    needs_gpu = config.model.weights == "4bit" or config.training.optimizer == "adamw_8bit"
    if needs_gpu and not torch.cuda.is_available():
        raise UserError(
            'weights = "4bit" and optimizer = "adamw_8bit" need an NVIDIA GPU, and this machine has none. '
            'On a CPU use weights = "bf16" and optimizer = "adamw", as configs/demo.toml does.'
        )


def _load_base(config: TrainConfig, base: Base) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "4bit": torch.bfloat16}
    full = config.training.method == "full"  # in fp32, because bf16 rounds small updates away
    options: dict[str, Any] = {"dtype": torch.float32 if full else types[precision(config.model.weights)]}
    if torch.cuda.is_available():
        options["device_map"] = {"": local_rank()}
    if config.model.weights == "4bit":
        options["quantization_config"] = _four_bits()
    model = AutoModelForCausalLM.from_pretrained(base.folder("hf"), use_safetensors=True, **options)
    if config.model.weights == "4bit":
        from peft import prepare_model_for_kbit_training

        recompute = config.training.gradient_checkpointing != "off"
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recompute)
    if full:
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    model.config.use_cache = False
    return model


def _four_bits() -> Any:
    """NF4 with double quantization (Dettmers et al. 2023, QLoRA)."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _lora(lora: LoraConfig, folder: Path) -> Any:
    from peft import LoraConfig as PeftLora

    return PeftLora(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora_targets(lora.target_modules, folder),
        bias="none",
        task_type="CAUSAL_LM",
    )
