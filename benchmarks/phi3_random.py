"""Writes a model folder with the exact Phi-3-mini-4k architecture and random weights: honest memory and speed without
a download. Layouts: `split` (Mistral's, that of unsloth/Phi-3-mini-4k-instruct) and `fused` (Microsoft's own).

usage: python -m benchmarks.phi3_random FOLDER --tokenizer FOLDER [--layout split|fused] [--layers 32]

`--tokenizer` is any folder with Phi-3's tokenizer.json, tokenizer.model and tokenizer_config.json.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

# config.json of microsoft/Phi-3-mini-4k-instruct
SHAPE: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 32000,
}


def write_model(folder: Path, tokenizer: Path, *, layout: str = "split", layers: int = 32, seed: int = 3407) -> int:
    """Write config, bf16 weights and tokenizer; returns the number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig, Phi3Config

    shape = {**SHAPE, "num_hidden_layers": layers}
    if layout == "split":  # Mistral counts the current token in its window, Phi-3's own configuration says 2047
        config: Any = MistralConfig(sliding_window=2048, head_dim=96, pad_token_id=32009, **shape)
    else:
        config = Phi3Config(sliding_window=2047, original_max_position_embeddings=4096, pad_token_id=32000, **shape)
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="2GB")
    for path in tokenizer.iterdir():
        shutil.copyfile(path, folder / path.name)
    return int(model.num_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--layout", choices=["split", "fused"], default="split")
    parser.add_argument("--layers", type=int, default=32)
    wish = parser.parse_args()
    wish.folder.mkdir(parents=True, exist_ok=True)
    print(f"{write_model(wish.folder, wish.tokenizer, layout=wish.layout, layers=wish.layers):,} parameters")


if __name__ == "__main__":
    main()
