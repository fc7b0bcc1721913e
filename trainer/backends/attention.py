"""Two things that Unsloth's attention does not need to do.

Rows that share a batch without padding attend in one call of torch's flash kernel also with torch 2.11. Unsloth takes
that kernel from torch 2.12 on, whose public function for it knows grouped heads, and before asks for attention once for
every row: a step with short rows on an H200 called it 1,632 times and filled 10,674 tensors with zeros. The operation
beneath is the same in torch 2.11, and Unsloth's own wrapper calls that. Only where results and gradients of a few rows
stay the same.

Batches of one length are not padded to another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

HEADS, GROUPS, WIDTH = 4, 2, 64
LENGTHS = (40, 56, 8)
OFF = ("0", "false", "no", "off")  # as Unsloth reads it
TOLERANCE = 0.02  # of a tensor's largest value: bf16 and the order of sums, not another result
WINDOWS = ((-1, 0), (sum(LENGTHS), 0))  # none, and one that is longer than any row: the same result
Attention = Callable[..., Any]  # torch.nn.attention.varlen.varlen_attn, as Unsloth calls it


def attend_in_one_call() -> bool:
    """Give Unsloth the kernel where it found none; whether it was done. UNSLOTH_TORCH_VARLEN=0 is obeyed."""
    dispatch = _dispatch()
    if dispatch._TORCH_VARLEN_ATTN is not None or os.environ.get("UNSLOTH_TORCH_VARLEN", "1").lower() in OFF:
        return False

    def attention(
        query: Any, key: Any, value: Any, ends: Any, _ends: Any, longest: int, _longest: int, **named: Any
    ) -> Any:
        left, right = named["window_size"]
        whole = (left, right) == (-1, 0)
        return dispatch._LeanFlashVarlen.apply(query, key, value, ends, longest, whole, named["scale"], left, right)

    try:
        if is_attention_by_rows(attention, "cuda"):
            dispatch._TORCH_VARLEN_ATTN = attention
            return True
    except Exception as error:  # a torch or a card that this was not made for: it attends as Unsloth has it
        print(f"rows of a batch attend one by one: {type(error).__name__}: {error}", file=sys.stderr)
    return False


def attend_at_full_length() -> None:
    """Where batches differ in length, Unsloth pads them for cuDNN's attention to one of a few lengths, and a length
    that is one of these to the next: cuDNN plans each length anew. Batches of one length do without: 2,048 tokens are
    not computed as 2,176. UNSLOTH_SDPA_CUDNN_BUCKET, where it is set, is obeyed.
    """
    if "UNSLOTH_SDPA_CUDNN_BUCKET" not in os.environ:
        _dispatch()._CUDNN_LENGTH_BUCKET = 0


def _dispatch() -> Any:
    import unsloth.models  # noqa: F401  before the next, which cannot be imported first
    from unsloth.utils import attention_dispatch

    return attention_dispatch


def is_attention_by_rows(attention: Attention, device: str) -> bool:
    """Whether `attention` gives what causal attention of each row alone gives, and the same gradients."""
    import torch

    rng, longest = torch.Generator().manual_seed(0), max(LENGTHS)
    shapes = [(sum(LENGTHS), heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    values = [torch.randn(shape, generator=rng).to(device, torch.bfloat16) for shape in shapes]
    weights = torch.randn(shapes[0], generator=rng).to(device)
    ends = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=device)
    theirs = _with_gradients(_row_by_row, values, weights)
    for window in WINDOWS:
        named = {"scale": None, "window_size": window, "enable_gqa": True}
        attend = partial(attention, **named)
        ours = _with_gradients(lambda *each, of=attend: of(*each, ends, ends, longest, longest), values, weights)
        pairs = zip(ours, theirs, strict=True)
        if not all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs):
            return False
    return True


def _row_by_row(query: Any, key: Any, value: Any) -> Any:
    import torch

    rows = zip(*(each.split(LENGTHS) for each in (query, key, value)), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    heads_first = ([each.transpose(0, 1)[None] for each in row] for row in rows)
    return torch.cat([attend(*row, is_causal=True, enable_gqa=True)[0].transpose(0, 1) for row in heads_first])


def _with_gradients(attend: Callable[..., Any], values: list[Any], weights: Any) -> list[Any]:
    """The result, then the gradients of query, key and value."""
    leaves = [value.detach().requires_grad_() for value in values]
    result = attend(*leaves)
    (result.float() * weights).sum().backward()
    return [result.detach().float(), *(leaf.grad.float() for leaf in leaves)]
