"""The training configuration: a TOML file parsed into a frozen model that refuses what it does not know.

Every mistake in a file is reported at once: the file, the dotted key, what is allowed; before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from modelstore import UserError

DPO_DEFAULTS: dict[str, Any] = {"dpo_beta": 0.1, "dpo_loss": "sigmoid"}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_null_byte_in(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("no path and no name can hold a null byte")
        return value


class ModelConfig(_Section):
    """Which base model, in which precision, at which length."""

    base: str = Field(min_length=3, description="hub:REPO@REVISION, modelscope:REPO, package:NAME or a local folder")
    weights: Literal["auto", "4bit", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="precision of the frozen base weights; auto is bf16 where the hardware multiplies it, else fp32 "
        "(on a GPU fp16); fp32 is also multiplied in fp32",
    )
    max_length_tokens: int = Field(
        default=2048, ge=16, le=131072, description="rows longer than this are cut, and counted"
    )


class DataConfig(_Section):
    """Where the training rows and the evaluation questions are."""

    path: Path = Field(description="JSONL, JSON, CSV or Parquet")
    questions: Path | None = Field(default=None, description="evaluation set that must not occur in the training rows")
    max_bad_rows_share: float = Field(
        default=0.01, ge=0, lt=1, description="more bad rows than this share refuse the file"
    )
    held_out_share: float = Field(
        default=0.0, ge=0, le=0.5, description="share of rows kept back for the evaluation loss"
    )
    seed: int = Field(default=3407, ge=0, description="decides the split")


class LoraConfig(_Section):
    """The adapter that is trained (Hu et al. 2021, LoRA)."""

    r: int = Field(default=16, ge=1, le=512, description="rank")
    alpha: int = Field(default=16, ge=1, le=1024, description="scale: the update is multiplied by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(
        default=("auto",), min_length=1, description='linear layers that get an adapter; ["auto"] is all in the blocks'
    )


class TrainingConfig(_Section):
    """What is trained, how long and how fast."""

    method: Literal["lora", "full", "dpo"] = Field(
        default="lora",
        description="full trains every weight but the embeddings, in fp32 and without [lora]; dpo trains an adapter on "
        "pairs of a chosen and a rejected answer",
    )
    dpo_beta: float = Field(
        default=DPO_DEFAULTS["dpo_beta"], gt=0, le=10, description="dpo: how closely the base is kept to; 0.5 is close"
    )
    dpo_loss: Literal["sigmoid", "hinge", "ipo"] = Field(
        default=DPO_DEFAULTS["dpo_loss"], description="dpo: the loss over the margin between the two answers"
    )
    backend: Literal["auto", "unsloth", "transformers"] = Field(
        default="auto", description="which training stack; auto is unsloth where there is an NVIDIA GPU"
    )
    plan: Literal["as_written", "fastest"] = Field(
        default="as_written",
        description="fastest lets the trainer choose model.weights (on a GPU), gradient_checkpointing and how the "
        "effective batch is split, by trying what fits",
    )
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = Field(default=None, description="passes over the data")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="optimizer steps; wins over epochs")
    batch_size: int = Field(default=4, ge=1, le=4096, description="rows per forward pass")
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=4096, description="forward passes per optimizer step")
    processes: int = Field(
        default=1, ge=1, le=64, description="one for each GPU; they share the rows of every optimizer step"
    )
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: int = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    gradient_checkpointing: Literal["off", "on", "unsloth"] = Field(
        default="off", description="recompute to save memory"
    )
    packing: bool = Field(default=False, description="many rows in one sequence, each seeing only itself (unsloth)")
    batches: Literal["auto", "padded", "padding_free"] = Field(
        default="auto", description="how rows of different length share a batch (unsloth)"
    )
    group_by_length: bool = Field(default=True, description="batches of rows of similar length: less padding")
    logging_steps: int = Field(default=5, ge=1)
    save_steps: int = Field(default=50, ge=1, description="optimizer steps between two checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="older ones are deleted")
    best_checkpoint: bool = Field(default=False, description="export the checkpoint with the lowest held-out loss")
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="stop after so many evaluations without a lower held-out loss"
    )
    tensorboard: bool = Field(default=False, description="also write TensorBoard events, below work/<run>/checkpoints")
    seed: int = Field(default=3407, ge=0)

    @model_validator(mode="after")
    def _a_length(self) -> TrainingConfig:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("set epochs or max_steps")
        return self

    @model_validator(mode="after")
    def _shares_are_equal(self) -> TrainingConfig:
        if (rows := self.batch_size * self.gradient_accumulation_steps) % self.processes:
            raise ValueError(
                f"batch_size x gradient_accumulation_steps = {rows} rows cannot be shared by processes = "
                f"{self.processes}: make one a multiple of the other"
            )
        return self

    def share(self) -> tuple[int, int]:
        """Rows per forward pass and forward passes per optimizer step in each process; fewer passes come first."""
        common = math.gcd(self.processes, self.gradient_accumulation_steps)
        return self.batch_size * common // self.processes, self.gradient_accumulation_steps // common

    @model_validator(mode="after")
    def _best_is_kept(self) -> TrainingConfig:
        if self.early_stopping_patience and not self.best_checkpoint:
            raise ValueError("early_stopping_patience needs best_checkpoint = true: the last one is not the best")
        return self


class ExportConfig(_Section):
    """Which files are made for llama.cpp, and which of them is served unless the operator says otherwise."""

    quantizations: tuple[str, ...] = Field(default=("Q8_0", "Q4_K_M"), min_length=1)
    serve_quantization: str = "Q8_0"
    importance_matrix: bool = Field(
        default=False, description="weigh the quantization errors by the training rows (needs a llama.cpp folder)"
    )
    adapter_gguf: bool = Field(default=False, description="the adapter as a GGUF too, for `llama-server --lora`")

    @model_validator(mode="after")
    def _served_is_exported(self) -> ExportConfig:
        if self.serve_quantization not in self.quantizations:
            raise ValueError(f"serve_quantization {self.serve_quantization!r} is not one of {list(self.quantizations)}")
        return self


class TrainConfig(_Section):
    """The whole file. `name` becomes part of the run id."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="lower-case letters, digits and dashes")
    model: ModelConfig
    data: DataConfig
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _full_is_exact(self) -> TrainConfig:
        if self.training.method == "full" and self.model.weights in ("4bit", "fp16"):
            raise ValueError(
                f'training.method = "full" changes the weights themselves, and {self.model.weights} cannot hold small '
                'changes: set model.weights = "auto"'
            )
        if self.training.method == "full" and self.export.adapter_gguf:
            raise ValueError('training.method = "full" makes no adapter: remove export.adapter_gguf')
        if self.training.method == "full" and self.training.plan == "fastest":
            raise ValueError('training.plan = "fastest" predicts adapters only: set plan = "as_written"')
        if self.training.method == "full" and self.training.backend == "unsloth":
            raise ValueError('training.method = "full" is done by the transformers backend: set backend = "auto"')
        return self

    @model_validator(mode="after")
    def _pairs_are_alone(self) -> TrainConfig:
        training = self.training
        if training.method != "dpo":
            if unused := [key for key, value in DPO_DEFAULTS.items() if getattr(training, key) != value]:
                raise ValueError(f'training.{unused[0]} is for method = "dpo": set that, or remove the key')
            return self
        if training.packing or training.batches == "padding_free":
            raise ValueError(
                'training.method = "dpo" compares two rows of one batch: set packing = false and batches = "auto"'
            )
        if training.processes > 1:
            raise ValueError('training.method = "dpo" trains in one process: set processes = 1')
        if training.plan == "fastest":
            raise ValueError('training.plan = "fastest" measures answers, not pairs: set plan = "as_written"')
        if self.lora.dropout:
            raise ValueError(
                'training.method = "dpo" compares two passes, which dropout would tell apart: set lora.dropout = 0'
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> TrainConfig:
        if self.training.best_checkpoint and not self.data.held_out_share:
            raise ValueError("training.best_checkpoint needs data.held_out_share above 0, to measure which is best")
        return self


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Parse `path`; `overrides` maps dotted keys ("data.path") to values that replace the file's.

    Raises UserError with every problem of the file.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no config at {path}. `ls configs/` lists the presets.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}.") from None
    for key, value in (overrides or {}).items():
        section, _, field = key.rpartition(".")
        holder = tree.setdefault(section, {}) if section else tree
        if isinstance(holder, dict):  # a section that is no table is one of the problems below
            holder[field] = value
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(_problem(detail) for detail in error.errors())
        raise UserError(f"{path} has {error.error_count()} problem(s):\n{problems}") from None


def _problem(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "(the whole file)"
    if detail["type"] == "extra_forbidden":
        return f"  {key}: no such key. {_nearest(detail['loc'])}"
    given = "" if detail["type"] == "missing" or isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
    return f"  {key}: {detail['msg']}{given}"


def _nearest(location: tuple[Any, ...]) -> str:
    import difflib

    model: type[BaseModel] = TrainConfig
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
            break
        model = annotation
    near = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(sorted(model.model_fields))}."


def config_dict(config: TrainConfig) -> dict[str, Any]:
    """The resolved configuration as plain JSON values."""
    return config.model_dump(mode="json")


def config_sha256(config: TrainConfig) -> str:
    """Hash of everything that decides the trained weights and the exported files.

    Paths are left out: the data's own hash stands for them. So is the number of processes: the same rows make a step.
    Where the trainer chooses the plan, what is written counts, not what was chosen. A key that decides nothing is left
    out where configs were hashed before it existed.
    """
    tree = config_dict(config)
    del tree["training"]["processes"]
    if config.training.plan == "as_written":
        del tree["training"]["plan"]
    if config.training.method != "dpo":
        for key in DPO_DEFAULTS:
            del tree["training"][key]
    del tree["data"]["path"], tree["data"]["questions"]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
