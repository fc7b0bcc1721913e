"""Merges an adapter into 16-bit weights, file by file: the model is never loaded, so a card that trained in 4 bits
and a machine with less memory than the model has can both do it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from trainer.machine import compute_device
from trainer.weights import read_adapter, tensor_file

NOT_COPIED = (".safetensors",)


class MergeError(Exception):
    """The adapter does not fit the base model's files."""


def merge_files(base: Path, adapter: Path, folder: Path) -> None:
    """W + (alpha / r) B A for every adapted matrix, computed in 32 bits, rounded once to the base's own 16-bit type.

    All other files of the base (tokenizer, chat template, configuration) are copied as they are.
    Raises MergeError when an adapted layer is not in the base's files under its own name.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    pairs, scale = read_adapter(adapter)
    left, device = set(pairs), compute_device()
    for path in sorted(base.glob("*.safetensors")):
        merged = {}
        with tensor_file(path) as file:
            for name in file.keys():  # noqa: SIM118  not a dictionary
                module = name.removesuffix(".weight")
                merged[name] = _merged(file.get_tensor(name), pairs.get(module), scale, device)
                left.discard(module)
        save_file(merged, folder / path.name, metadata={"format": "pt"})
    if left:
        raise MergeError(
            f"{len(left)} adapted layers are not in the base model's files, among them {min(left)}: its files name "
            "their layers in another way than the loaded model does, so the merged weights would lack the fine-tune."
        )
    for path in base.iterdir():
        if path.suffix not in NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    _say_sixteen_bit(folder / "config.json")


def _merged(weight: Any, pair: dict[str, Any] | None, scale: float, device: str) -> Any:
    import torch

    stored = torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype
    if pair is None:
        return weight.to(stored) if weight.is_floating_point() else weight
    low_rank = pair["B"].to(device, torch.float32) @ pair["A"].to(device, torch.float32)
    return (weight.to(device, torch.float32) + scale * low_rank).to(stored).cpu()


def _say_sixteen_bit(config_path: Path) -> None:
    config = json.loads(config_path.read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):
        if config.get(key) == "float32":
            config[key] = "bfloat16"
    config["use_cache"] = True
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
