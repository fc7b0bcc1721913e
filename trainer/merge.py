"""Merges an adapter into 16-bit weights, file by file: the model is never loaded, so a card that trained in 4 bits
and a machine with less memory than the model has can both do it. Weights that were trained whole are rounded likewise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.machine import compute_device
from trainer.weights import read_adapter, read_tensors, tensor_file

NOT_COPIED = (".safetensors",)


class MergeError(Exception):
    """The adapter does not fit the base model's files."""


def merge_files(base: Path, adapter: Path, folder: Path) -> None:
    """W + (alpha / r) B A for every adapted matrix, computed in 32 bits, rounded once to the base's own 16-bit type.

    All other files of the base (tokenizer, chat template, configuration) are copied as they are.
    Raises MergeError when an adapted layer is not in the base's files under its own name.
    """
    pairs, scale = read_adapter(adapter)
    left, device = set(pairs), compute_device()

    def merged(name: str, weight: Any) -> Any:
        module = name.removesuffix(".weight")
        left.discard(module)
        return _merged(weight, pairs.get(module), scale, device)

    _write(base, folder, merged)
    if left:
        raise MergeError(
            f"{len(left)} adapted layers are not in the base model's files, among them {min(left)}: its files name "
            "their layers in another way than the loaded model does, so the merged weights would lack the fine-tune."
        )


def round_files(base: Path, trained: Path, folder: Path) -> None:
    """The `trained` fp32 weights in the base's files and 16-bit type; all other files are the base's.

    Raises MergeError when a trained tensor is not in the base's files under its own name.
    """
    there = dict(read_tensors(trained))
    left = set(there)

    def rounded(name: str, weight: Any) -> Any:
        left.discard(name)
        return there[name]().to(_sixteen_bit(weight)) if name in there else _merged(weight, None, 1.0, "cpu")

    _write(base, folder, rounded)
    if left:
        raise MergeError(f"{len(left)} trained tensors are not in the base model's files, among them {min(left)}.")


def _write(base: Path, folder: Path, tensor_of: Callable[[str, Any], Any]) -> None:
    """The base's files with `tensor_of(name, base tensor)` in place of each tensor."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(base.glob("*.safetensors")):
        with tensor_file(path) as file:
            tensors = {name: tensor_of(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
    for path in base.iterdir():
        if path.suffix not in NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    _say_sixteen_bit(folder / "config.json")


def _sixteen_bit(weight: Any) -> Any:
    import torch

    return torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype


def _merged(weight: Any, pair: dict[str, Any] | None, scale: float, device: str) -> Any:
    import torch

    stored = _sixteen_bit(weight)
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
