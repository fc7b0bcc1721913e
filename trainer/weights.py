"""Compares the merged weights with base + adapter, tensor by tensor: no probe can miss what this sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "base_model.model."


@dataclass(frozen=True)
class WeightError:
    """worst: the largest |merged - (W + scale B A)| of a tensor, over the largest magnitude in it."""

    worst: float
    worst_tensor: str
    tensors: int
    adapted: int
    missing: str


def compare_weights(base: Path, adapter: Path, merged: Path) -> WeightError:
    """Every tensor of the base must be in the merged weights, changed by exactly the adapter (up to rounding)."""
    pairs, scale = _adapter(adapter)
    there = dict(_tensors(merged))
    worst, worst_tensor, count, adapted, missing = 0.0, "", 0, 0, ""
    for name, read in _tensors(base):
        count += 1
        if name not in there:
            missing = missing or name
            continue
        expected, found = read().float(), there[name]().float()
        low_rank = pairs.get(name.removesuffix(".weight"))
        if low_rank:
            adapted += 1
            expected = expected + scale * (low_rank["B"].float() @ low_rank["A"].float())
        if expected.shape != found.shape:
            missing = missing or f"{name} has the shape {tuple(found.shape)}"
            continue
        error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not error <= worst:  # also when it is not a number
            worst, worst_tensor = error, name
    if adapted < len(pairs):
        missing = missing or f"{len(pairs) - adapted} adapted layers"
    return WeightError(round(worst, 5), worst_tensor, count, adapted, missing)


def _adapter(folder: Path) -> tuple[dict[str, dict[str, Any]], float]:
    from safetensors.torch import load_file

    settings = json.loads((folder / "adapter_config.json").read_text())
    pairs: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, _, side = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        pairs.setdefault(module, {})[side] = tensor
    return pairs, settings["lora_alpha"] / settings["r"]


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and reader of every tensor in the safetensors files of a folder; nothing is read before it is asked for."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        file = safe_open(path, framework="pt")
        names: list[str] = file.keys()  # type: ignore[no-untyped-call]
        for name in names:
            yield name, lambda file=file, name=name: file.get_tensor(name)
