"""The sizes of a model from its config.json alone: no weights are needed, so nothing is downloaded for a plan."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstore import UserError
from trainer.targets import AUTO

FUSED = ("phi3",)  # families that keep q, k, v in one matrix, and gate and up in another
TIED = ("gemma", "gemma2", "gemma3", "gemma3_text")  # families whose config.json is silent about tied embeddings
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Shape:
    """A dense decoder. Sizes are numbers of elements."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each matrix of a block, by the name that LoRA knows it by."""
        mlp_out = {"down_proj": (self.intermediate, self.hidden)}
        attention_out = {"o_proj": (self.queries, self.hidden)}
        if self.family in FUSED:
            return {
                "qkv_proj": (self.hidden, self.queries + 2 * self.keys),
                "gate_up_proj": (self.hidden, 2 * self.intermediate),
                **attention_out,
                **mlp_out,
            }
        attention = {"q_proj": self.queries, "k_proj": self.keys, "v_proj": self.keys}
        mlp = {"gate_proj": self.intermediate, "up_proj": self.intermediate}
        return {**{name: (self.hidden, out) for name, out in (attention | mlp).items()}, **attention_out, **mlp_out}

    @property
    def block_parameters(self) -> int:
        """Matrices of all blocks: what 4-bit weights shrink."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.modules.values())

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.block_parameters + self.embedding_parameters + (2 * self.layers + 1) * self.hidden

    def targets(self, wanted: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """The matrices that get an adapter. Raises UserError for a name that the model does not have."""
        if wanted == (AUTO,):
            return self.modules
        if missing := [name for name in wanted if name not in self.modules]:
            raise UserError(
                f"lora.target_modules names {', '.join(missing)}, and the base model ({self.family}) has "
                f'{", ".join(self.modules)}. Name those, or set target_modules = ["auto"] for all of them.'
            )
        return {name: self.modules[name] for name in wanted}


def shape_of(config: dict[str, Any], source: str = "config.json") -> Shape:
    """Raises UserError for what is no dense decoder, or lacks a size."""
    config = config.get("text_config", config)
    family = str(config.get("model_type", "unknown"))
    if any(config.get(name) for name in EXPERTS):
        raise UserError(f"{source} is that of a mixture of experts ({family}); plans are for dense models.")
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return Shape(
            family=family,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", family in TIED)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{source} has no usable {error}, so the model's size cannot be told from it.") from None


def find_shape(spec: str, store: Path, config_json: Path | None = None) -> Shape:
    """The shape of what model.base names: from `config_json`, the store, a folder, the package or the hub's cache.

    Raises UserError where none of them has it.
    """
    if config_json:
        return _read(config_json)
    kind, _, name = spec.partition(":")
    if kind == "package":
        return _of_package(name)
    if Path(spec).is_dir():
        return _read(Path(spec) / "config.json")
    path = _in_store(spec, store) or (_in_hub_cache(name) if kind == "hub" else None)
    if path:
        return _read(path)
    raise UserError(
        f"model.base = {spec!r} is neither in the store at {store} nor in a cache on this machine, and a plan "
        "downloads nothing. Save the model's config.json (one small file on its page) and name it: --model-config FILE."
    )


def _read(path: Path) -> Shape:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a model's config.json: {error}.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is no model's config.json: an object is expected.")
    return shape_of(config, str(path))


def _in_store(spec: str, store: Path) -> Path | None:
    repository = spec.partition("@")[0]
    for manifest in sorted((store / "bases").glob("*/manifest.json")):
        if json.loads(manifest.read_text(encoding="utf-8"))["base"].get("repository") == repository:
            return manifest.parent / "hf" / "config.json"
    return None


def _in_hub_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = name.partition("@")
    found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def _of_package(name: str) -> Shape:
    try:
        files = importlib.metadata.distribution(name).files or ()
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"The Python package '{name}' is not installed in this environment: make setup") from None
    found = [Path(str(file.locate())) for file in files if str(file).endswith(".gguf")]
    if len(found) != 1:
        raise UserError(f"The package '{name}' carries {len(found)} GGUF files; exactly one is expected.")
    return shape_of(gguf_config(found[0]), found[0].name)


def gguf_config(gguf: Path) -> dict[str, Any]:
    """What a GGUF file's metadata says of the model, in config.json's words."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    family = str(reader.fields["general.architecture"].contents())
    keys = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
    }
    config = {ours: field.contents() for ours, key in keys.items() if (field := reader.get_field(f"{family}.{key}"))}
    tokens = reader.fields["tokenizer.ggml.tokens"]
    return {
        **config,
        "model_type": family,
        "vocab_size": len(tokens.data),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }
