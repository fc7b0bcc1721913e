"""Which linear layers get an adapter: the names that the model really has, not those that another one has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelstore import UserError
from trainer.weights import tensor_shapes

AUTO = "auto"
BLOCK = ".layers."  # what every decoder family calls its stack of blocks
NO_TARGETS = ("router", "gate")  # small, and they decide where tokens go


def lora_targets(wanted: Sequence[str], folder: Path) -> list[str]:
    """Module names for peft, for the model in `folder`. Raises UserError for a name that the model does not have.

    A missing name is no detail: the seven names of a split layout find two of the four layers of a fused one, train
    half of it, and say nothing.
    """
    there = linear_layers(folder)
    if list(wanted) == [AUTO]:
        return there
    if missing := [name for name in wanted if name not in there]:
        raise UserError(
            f"lora.target_modules names {', '.join(missing)}, and the base model has no such layer: it has "
            f'{", ".join(there)}. Name those, or set target_modules = ["auto"] for all of them.'
        )
    return list(wanted)


def linear_layers(folder: Path) -> list[str]:
    """Last part of the names of all matrices inside the blocks, sorted."""
    names = {
        name.removesuffix(".weight").rpartition(".")[2]
        for name, shape in tensor_shapes(folder).items()
        if len(shape) == 2 and BLOCK in name and name.endswith(".weight")
    }
    return sorted(names.difference(NO_TARGETS))
