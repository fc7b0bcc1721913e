"""Merges an adapter into 16-bit weights, file by file: the model is never loaded, so a card that trained in 4 bits
and a machine with less memory than the model has can both do it. Weights that were trained whole are rounded likewise.
Sparing memory, the processor computes and a file of the base becomes several.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.machine import compute_device
from trainer.weights import read_adapter, read_tensors, tensor_file

NOT_COPIED = (".safetensors",)
INDEX = "model.safetensors.index.json"  # where transformers and vLLM look for which tensor is in which file
PIECE_PARAMETERS = 64_000_000  # of one file when memory is spared: 128 MB


class MergeError(Exception):
    """The adapter does not fit the base model's files."""


def merge_files(base: Path, adapter: Path, folder: Path, *, sparing: bool = False) -> None:
    """W + (alpha / r) B A for every adapted matrix, computed in 32 bits, rounded once to the base's own 16-bit type.

    All other files of the base (tokenizer, chat template, configuration) are copied as they are.
    Raises MergeError when an adapted layer is not in the base's files under its own name.
    """
    pairs, scale = read_adapter(adapter)
    left, device = set(pairs), "cpu" if sparing else compute_device()

    def merged(name: str, weight: Any) -> Any:
        module = name.removesuffix(".weight")
        left.discard(module)
        return _merged(weight, pairs.get(module), scale, device)

    _write(base, folder, merged, sparing)
    if left:
        raise MergeError(
            f"{len(left)} adapted layers are not in the base model's files, among them {min(left)}: its files name "
            "their layers in another way than the loaded model does, so the merged weights would lack the fine-tune."
        )


def round_files(base: Path, trained: Path, folder: Path, *, sparing: bool = False) -> None:
    """The `trained` fp32 weights in the base's files and 16-bit type; all other files are the base's.

    Raises MergeError when a trained tensor is not in the base's files under its own name.
    """
    there = dict(read_tensors(trained))
    left = set(there)

    def rounded(name: str, weight: Any) -> Any:
        left.discard(name)
        return there[name]().to(_sixteen_bit(weight)) if name in there else _merged(weight, None, 1.0, "cpu")

    _write(base, folder, rounded, sparing)
    if left:
        raise MergeError(f"{len(left)} trained tensors are not in the base model's files, among them {min(left)}.")


def _write(base: Path, folder: Path, tensor_of: Callable[[str, Any], Any], sparing: bool) -> None:
    """The base's files with `tensor_of(name, base tensor)` in place of each tensor; one of them is held at a time, or
    a piece of it.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    total_bytes = 0
    for path in sorted(base.glob("*.safetensors")):
        with tensor_file(path) as file:
            for number, names in enumerate(_pieces(file) if sparing else [list(file.keys())]):
                tensors = {name: tensor_of(name, file.get_tensor(name)) for name in names}
                target = f"{path.stem}-piece-{number:03d}.safetensors" if sparing else path.name
                save_file(tensors, folder / target, metadata={"format": "pt"})
                where |= dict.fromkeys(names, target)
                total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    for path in base.iterdir():
        if path.suffix not in NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    if sparing:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    _say_sixteen_bit(folder / "config.json")


def _pieces(file: Any) -> Iterator[list[str]]:
    """Names of tensors that are held together."""
    names: list[str] = []
    parameters = 0
    for name in file.keys():  # noqa: SIM118  not a dictionary
        size = math.prod(file.get_slice(name).get_shape())
        if names and parameters + size > PIECE_PARAMETERS:
            yield names
            names, parameters = [], 0
        names.append(name)
        parameters += size
    yield names


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
