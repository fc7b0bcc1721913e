"""The cost model that orders plans, and turns into seconds where a rate was measured.

Cost is floating-point work: 2 operations per matrix element and token forward, 2 backward (the base is frozen, so only
the activations have gradients), 2 more where blocks are recomputed, by Unsloth without the MLP's last product;
attention and logits likewise. Pairs of answers take one more pass forward, for the reference, and compute their logits
twice. Every pass over the weights costs as much as PASS_TOKENS more tokens: small batches pay for it. docs/planning.md
says what is assumption.
"""

from __future__ import annotations

import time

from trainer.config import TrainConfig
from trainer.plan import Lengths, Place, adapter_parameters, sequences_of_a_pass
from trainer.plan_shape import Shape

PASS_TOKENS = {"cpu": 16, "cuda": 128}
FOUR_BIT_PASSES = 2  # a pass over 4-bit weights unpacks them first
OFFLOAD_COST = 1.02  # checkpoints that are moved to host memory and back
# operations per second in training, from measured tokens/s of the recipe with Phi-3-mini's architecture
MEASURED_RATE = {
    ("H100", "unsloth"): 439e12,
    ("H100", "transformers"): 179e12,
    ("H200", "unsloth"): 472e12,
    ("H200", "transformers"): 206e12,
}
CPU_SHARE = 0.5  # of the speed of a plain matrix product that training reaches
EMULATED_BF16 = 10  # times slower than fp32 on a processor without bf16 arithmetic


def step_operations(config: TrainConfig, shape: Shape, place: Place, lengths: Lengths, mean_tokens: float) -> float:
    """Of one optimizer step, with passes over the weights counted as work."""
    training = config.training
    recompute = 0 if training.gradient_checkpointing == "off" else 1
    reference = 1 if training.method == "dpo" else 0
    tokens = sequences_of_a_pass(config) * mean_tokens
    passes = PASS_TOKENS[place.device] * (FOUR_BIT_PASSES if config.model.weights == "4bit" else 1)
    left_out = shape.layers * shape.hidden * shape.intermediate if place.backend == "unsloth" else 0
    again = recompute * (shape.block_parameters - left_out)
    blocks = 2 * (shape.block_parameters * (2 + reference) + again) * (tokens + passes)
    attention = 2 * shape.layers * shape.queries * mean_tokens * (3 + recompute + reference) * tokens
    answers = lengths.answer_columns / lengths.longest
    logits = 4 * (1 + reference) * shape.vocabulary * shape.hidden * tokens * answers
    adapters = 2 * adapter_parameters(config, shape) * (3 + recompute) * tokens
    offload = OFFLOAD_COST if training.gradient_checkpointing == "unsloth" else 1.0
    return (blocks + attention + logits + adapters) * offload * training.gradient_accumulation_steps


def rate(place: Place, gpu_name: str, weights: str) -> float | None:
    """Operations per second, or None for a GPU that nothing was measured on."""
    if place.device == "cuda":
        return next(
            (r for (name, backend), r in MEASURED_RATE.items() if name in gpu_name and backend == place.backend), None
        )
    slow = EMULATED_BF16 if weights == "bf16" and not _bf16_is_native() else 1
    return CPU_SHARE * matrix_product_rate() / slow


def matrix_product_rate(seconds: float = 0.2) -> float:
    """Operations per second of a 32-bit matrix product here, by trying; the fastest, as other programs disturb."""
    import numpy as np

    a = np.ones((512, 512), dtype=np.float32)
    fastest, until = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        a @ a
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * 512**3 / fastest


def _bf16_is_native() -> bool:
    from trainer.machine import multiplies_bf16

    return multiplies_bf16()


def steps_of(config: TrainConfig, rows: int | None) -> int | None:
    """Optimizer steps of the whole training; None where the number of rows decides and is not known."""
    training = config.training
    if training.max_steps:
        return training.max_steps
    if rows is None or training.epochs is None:
        return None
    batch = training.batch_size * training.gradient_accumulation_steps
    kept = rows - round(rows * config.data.held_out_share)
    return max(1, round(-(-kept // batch) * training.epochs))
