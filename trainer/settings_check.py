"""Compares what decides how weights are computed (rotary base, heads, norms, lengths) across base, merged and GGUF.

Answers on short probes hardly change with a wrong rotary base; long prompts break later, in production.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WRITTEN_BY_EXPORT = ("dtype", "torch_dtype", "use_cache", "_name_or_path", "transformers_version")
# key in GGUF, below the architecture's name -> keys in config.json, the first that is there
GGUF_KEYS: dict[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_attention_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "rope.freq_base": ("rope_theta", "rope_parameters.rope_theta"),
    "rope.dimension_count": ("head_dim",),
    "context_length": ("max_position_embeddings",),
    "vocab_size": ("vocab_size",),
}
RELATIVE_ERROR = 1e-6  # GGUF stores floats in 32 bits


def changed_settings(base: Path, merged: Path) -> list[str]:
    """Keys of config.json whose values differ, but for those that an export may change."""
    before, after = _config(base), _config(merged)
    return sorted(
        key
        for key in before.keys() | after.keys()
        if key not in WRITTEN_BY_EXPORT and before.get(key) != after.get(key)
    )


def differing_settings(gguf: Path, merged: Path) -> tuple[list[str], int]:
    """Settings of the GGUF file that are not those of the merged model's config.json, and how many were compared."""
    from gguf import GGUFReader

    fields, config, different, compared = GGUFReader(gguf).fields, _config(merged), [], 0
    architecture = str(fields["general.architecture"].contents())
    for key, names in GGUF_KEYS.items():
        field = fields.get(f"{architecture}.{key}")
        wanted = next((value for name in names if (value := _lookup(config, name)) is not None), None)
        if field is None or not isinstance(wanted, int | float):
            continue
        compared += 1
        found = field.contents()
        if not isinstance(found, int | float) or abs(found - wanted) > RELATIVE_ERROR * abs(wanted):
            different.append(f"{key} {found} instead of {wanted}")
    return different, compared


def _config(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return tree


def _lookup(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
