"""Compares the merged weights with base + adapter, tensor by tensor: no probe can miss what this sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.machine import compute_device

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
    pairs, scale = read_adapter(adapter)

    def expected(name: str, weight: Any) -> tuple[Any, bool]:
        low_rank = pairs.get(name.removesuffix(".weight"))
        if not low_rank:
            return weight, False
        product = low_rank["B"].to(weight.device).float() @ low_rank["A"].to(weight.device).float()
        return weight + scale * product, True

    found = _compare(base, merged, expected)
    if found.adapted < len(pairs) and not found.missing:
        return replace(found, missing=f"{len(pairs) - found.adapted} adapted layers")
    return found


def compare_trained(base: Path, trained: Path, merged: Path) -> WeightError:
    """Every tensor of the base must be in the merged weights with the trained values (up to rounding), or the base's
    where it was not trained; `adapted` counts the tensors that the training changed.
    """
    there = dict(read_tensors(trained))

    def expected(name: str, weight: Any) -> tuple[Any, bool]:
        if name not in there:
            return weight, False
        after = there[name]().to(weight.device).float()
        return after, not after.equal(weight)

    return _compare(base, merged, expected)


def _compare(base: Path, merged: Path, expect: Callable[[str, Any], tuple[Any, bool]]) -> WeightError:
    """`expect(name, base tensor)` is the tensor that should be there, and whether it is another than the base's."""
    there, device = dict(read_tensors(merged)), compute_device()
    worst, worst_tensor, count, adapted, missing = 0.0, "", 0, 0, ""
    for name, read in read_tensors(base):
        count += 1
        if name not in there:
            missing = missing or name
            continue
        (expected, changed), found = expect(name, read().to(device).float()), there[name]().to(device).float()
        adapted += changed
        if expected.shape != found.shape:
            missing = missing or f"{name} has the shape {tuple(found.shape)}"
            continue
        error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not error <= worst:  # also when it is not a number
            worst, worst_tensor = error, name
    return WeightError(round(worst, 5), worst_tensor, count, adapted, missing)


def read_adapter(folder: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """Matrices A and B by module name, and the scale alpha / r that their product is multiplied by."""
    from safetensors.torch import load_file

    settings = json.loads((folder / "adapter_config.json").read_text())
    pairs: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, _, side = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        pairs.setdefault(module, {})[side] = tensor
    return pairs, settings["lora_alpha"] / settings["r"]


def read_tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and reader of every tensor in the safetensors files of a folder; nothing is read before it is asked for."""
    for path in sorted(folder.glob("*.safetensors")):
        file = tensor_file(path)
        names: list[str] = file.keys()
        for name in names:
            yield name, lambda file=file, name=name: file.get_tensor(name)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name, from the headers alone."""
    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with tensor_file(path) as file:
            for name in file.keys():  # noqa: SIM118  not a dictionary
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def tensor_file(path: Path) -> Any:
    """An open safetensors file; a context manager."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")
