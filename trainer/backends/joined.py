"""Rows of a batch as one sequence without padding, in which the beginning that they share stands once.

A chat template begins every row with the same system message, and a batch of short rows computes it again for each.
Here it is computed once, and every row sees it and itself. Losses and gradients are those of the padded batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LONGEST_TOKENS = 1024  # beyond it the attention over the whole sequence costs more than is saved
MULTIPLE = 16  # of tokens, and of trained ones: oneDNN compiles and keeps kernels for every shape that it meets
LEAST_SAVED = 0.05  # share of the padded batch


@dataclass(frozen=True)
class Joined:
    """`model_inputs` for one forward pass; `before` holds, for every trained token, the position that predicts it.

    Both are filled up to a multiple of MULTIPLE: `targets` with ignored labels, the sequence with tokens that no row
    sees.
    """

    model_inputs: dict[str, Any]
    before: Any
    targets: Any


def join(input_ids: Any, attention_mask: Any, labels: Any, ignored: int) -> Joined | None:
    """None where joining saves little or the sequence grows long. Rows are padded on the right."""
    import torch

    lengths = attention_mask.sum(dim=1).tolist()
    shared = _shared_tokens(input_ids, min(lengths))
    total = shared + sum(length - shared for length in lengths)
    filled = total + -total % MULTIPLE
    if filled > LONGEST_TOKENS or filled > (1 - LEAST_SAVED) * input_ids.numel():
        return None
    ids, positions, owner = [input_ids[0, :shared]], [torch.arange(shared)], [torch.zeros(shared, dtype=torch.long)]
    before, targets, start = [], [], shared
    for row, length in enumerate(lengths):
        ids.append(input_ids[row, shared:length])
        positions.append(torch.arange(shared, length))
        owner.append(torch.full((length - shared,), row + 1))
        trained = (labels[row, 1:length] != ignored).nonzero().squeeze(1).cpu()
        before.append(torch.where(trained < shared, trained, trained + start - shared))
        targets.append(labels[row, 1:length][trained])
        start += length - shared
    ids.append(input_ids.new_zeros(filled - total))
    positions.append(ids[-1])
    owner.append(torch.full_like(ids[-1], len(lengths) + 1))
    targets.append(labels.new_full((-sum(map(len, targets)) % MULTIPLE,), ignored))
    before.append(torch.zeros_like(targets[-1]))
    whose, device = torch.cat(owner), input_ids.device
    sees = (whose[None, :] == 0) | (whose[None, :] == whose[:, None])
    inputs = {
        "input_ids": torch.cat(ids)[None],
        "position_ids": torch.cat(positions)[None].to(device),
        "attention_mask": sees.tril()[None, None].to(device),
    }
    return Joined(inputs, torch.cat(before).to(device), torch.cat(targets))


def can_join(model_config: Any, longest_row: int) -> bool:
    """Whether this model takes a mask of its own making: attention in PyTorch, no window shorter than the rows."""
    window = getattr(model_config, "sliding_window", None) or longest_row
    return getattr(model_config, "_attn_implementation", "") == "sdpa" and longest_row <= window


def _shared_tokens(input_ids: Any, shortest: int) -> int:
    differs = (input_ids[:, :shortest] != input_ids[:1, :shortest]).any(dim=0).nonzero()
    return int(differs[0]) if len(differs) else shortest
