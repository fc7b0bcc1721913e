"""Predicts the peak memory of a training, item by item, from a model's shape and a config. Nothing is loaded.

The activations are those that autograd keeps, counted tensor by tensor and confirmed with saved_tensors_hooks on a
Llama block; docs/planning.md derives them and says what the constants were measured on.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import TrainConfig
from trainer.plan_shape import Shape

MIB, GIB = 1 << 20, 1 << 30
BITS_4 = 0.516  # bytes of an nf4 weight with its doubly quantized scales (Dettmers et al. 2023, section 3)
BYTES = {"4bit": 2, "bf16": 2, "fp16": 2, "fp32": 4}  # of the type that is computed in
ADAM_BYTES = {"adamw": 8, "adamw_8bit": 2}
FRAMEWORK_BYTES = 420 * MIB  # Python with torch, transformers, trl and peft imported and a trainer made, on a CPU
CUDA_CONTEXT_BYTES = 500 * MIB  # beside what torch reserves; not measured by torch
TILE = 4096, 32768  # tokens and vocabulary that trl's loss of pairs looks at together
TILE_COPIES_BYTES = 32  # of one logit while torch, without Triton, runs such a tile backward
CHUNKED_LOGITS_BYTES = 256 * MIB  # unsloth's fused loss works in pieces
RESERVED = 0.1  # share that torch's allocator holds on a GPU beyond what is used
# what glibc holds on a CPU, as a share of all blocks' activations: it seldom finds a use for freed aligned memory
FRAGMENTED = {2: 0.6, 4: 0.75}


@dataclass(frozen=True)
class Place:
    """Where the training runs: "cpu" or "cuda", "transformers" or "unsloth"."""

    device: str
    backend: str


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest row, and for how many of its columns logits are made (those with a trained token)."""

    longest: int
    answer_columns: int


@dataclass(frozen=True)
class Peak:
    """Bytes by item; `bytes` is the highest sum at any time, on the device that trains."""

    items: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.items.values())

    @property
    def fixed_bytes(self) -> int:
        """What no smaller batch and no shorter row takes away."""
        return sum(self.items[name] for name in ("weights", "adapters", "gradients", "optimizer"))


def predict_peak(config: TrainConfig, shape: Shape, place: Place, lengths: Lengths) -> Peak:
    """The peak of one optimizer step at the longest rows."""
    columns = min(lengths.longest, lengths.answer_columns)
    tokens = sequences_of_a_pass(config) * lengths.longest
    adapters = adapter_parameters(config, shape)
    kept, transient = _activations(config, shape, place, tokens)
    items = {
        "weights": weight_bytes(config, shape, place),
        "adapters": 4 * adapters,
        "gradients": 4 * adapters,
        "optimizer": ADAM_BYTES[config.training.optimizer] * adapters,
        "activations": kept,
    }
    if config.training.method == "dpo":
        logits = _pair_logits(config, shape, place, tokens)
    else:
        logits = _logits(config, shape, place, config.training.batch_size * columns)
    # the logits are gone when the blocks are recomputed or run backward
    items["logits" if logits >= transient else "one block again"] = max(logits, transient)
    if place.device == "cuda":
        return Peak({**items, "allocator": int(RESERVED * sum(items.values())), "CUDA context": CUDA_CONTEXT_BYTES})
    blocks = shape.layers * tokens * kept_per_token(config, shape, place)
    freed = int(FRAGMENTED[BYTES[config.model.weights]] * blocks)
    return Peak({**items, "allocator": freed, "framework": FRAMEWORK_BYTES})


def sequences_of_a_pass(config: TrainConfig) -> int:
    """Rows are one sequence each, pairs two. The pass for the reference keeps nothing."""
    return config.training.batch_size * (2 if config.training.method == "dpo" else 1)


def adapter_parameters(config: TrainConfig, shape: Shape) -> int:
    """r rows of A and r columns of B for each adapted matrix."""
    targets = shape.targets(config.lora.target_modules).values()
    return shape.layers * config.lora.r * sum(inputs + outputs for inputs, outputs in targets)


def weight_bytes(config: TrainConfig, shape: Shape, place: Place) -> int:
    """The frozen base; in 4 bits the embeddings stay as they are (peft makes them 32-bit on the plain stack)."""
    if config.model.weights != "4bit":
        return shape.parameters * BYTES[config.model.weights]
    rest = shape.parameters - shape.block_parameters
    return int(shape.block_parameters * BITS_4) + rest * (4 if place.backend == "transformers" else 2)


def _activations(config: TrainConfig, shape: Shape, place: Place, tokens: int) -> tuple[int, int]:
    """Bytes that are kept from the forward pass to the backward pass, and the most that a block needs on top."""
    width = _stream_bytes(config, place)
    block = tokens * kept_per_token(config, shape, place)
    backward = tokens * _backward_per_token(shape, width)
    how = config.training.gradient_checkpointing
    if how == "off":
        return shape.layers * block, backward
    checkpoints = shape.layers * tokens * shape.hidden * width
    return (0 if how == "unsloth" else checkpoints), block + backward


def offloaded_bytes(config: TrainConfig, shape: Shape, lengths: Lengths) -> int:
    """Host memory for checkpoints that Unsloth moves off the card."""
    if config.training.gradient_checkpointing != "unsloth":
        return 0
    return shape.layers * sequences_of_a_pass(config) * lengths.longest * shape.hidden * 2


def kept_per_token(config: TrainConfig, shape: Shape, place: Place) -> int:
    """Bytes that autograd keeps of one block for one token."""
    hidden, inner, queries, keys = shape.hidden, shape.intermediate, shape.queries, shape.keys
    width = BYTES[config.model.weights]
    attention = width * 2 * (queries + keys)  # queries, keys, values, and what they give
    if place.backend == "unsloth":  # inputs once, two products of the MLP, no copies
        return attention + width * (4 * hidden + 2 * inner)
    targets = shape.targets(config.lora.target_modules)
    low_rank = 4 * config.lora.r * len(targets)
    norms = 4 * 2 * hidden  # computed in 32 bits
    mlp = width * 3 * inner
    inputs = sum(size for size, _ in targets.values())
    if place.device == "cuda" and width == 2:  # autocast keeps a 16-bit copy for every adapter
        return attention + norms + mlp + low_rank // 2 + 2 * inputs
    if width == 2:  # each adapter keeps its own 32-bit copy of its input
        return attention + norms + mlp + low_rank + 4 * inputs
    shared = {"attention": ("q_proj", "k_proj", "v_proj", "qkv_proj"), "mlp": ("gate_proj", "up_proj", "gate_up_proj")}
    once = sum(4 * hidden for names in shared.values() if set(names) & set(targets))
    return attention + norms + mlp + low_rank + once + (4 * inner if "down_proj" in targets else 0)


def _backward_per_token(shape: Shape, width: int) -> int:
    """Gradients of the MLP's two products and their product, and of the residual stream."""
    return width * (3 * shape.intermediate + 2 * shape.hidden)


def _stream_bytes(config: TrainConfig, place: Place) -> int:
    """Of one element of what flows between blocks: peft's 32-bit embeddings make it 32 bits wide."""
    plain_4bit = config.model.weights == "4bit" and place.backend == "transformers"
    return 4 if plain_4bit else BYTES[config.model.weights]


def _logits(config: TrainConfig, shape: Shape, place: Place, columns: int) -> int:
    """Logits, their 32-bit copy, its log softmax and the gradients of both."""
    if place.backend == "unsloth":
        return CHUNKED_LOGITS_BYTES
    width = BYTES[config.model.weights]
    copies = 4 + (0 if width == 4 else 4) + 4
    return columns * shape.vocabulary * (width + copies)


def _pair_logits(config: TrainConfig, shape: Shape, place: Place, tokens: int) -> int:
    """trl's fused output layer holds one tile of logits; on a CPU of all tokens, trained or not."""
    if place.backend == "unsloth":
        return CHUNKED_LOGITS_BYTES
    tile = min(tokens, TILE[0]) * min(shape.vocabulary, TILE[1])
    return tile * (BYTES[config.model.weights] + (TILE_COPIES_BYTES if place.device == "cpu" else 0))
