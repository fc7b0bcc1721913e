"""Two things that Unsloth's attention does not need to do.

Rows that share a batch without padding attend in one call of torch's flash kernel also with torch 2.11. Unsloth takes
that kernel from torch 2.12 on, whose public function for it knows grouped heads, and before asks for attention once for
every row: with short rows, on an H200, the gradients of the slices alone were a sixth of the GPU's time. The
operation beneath is the same in torch 2.11, and Unsloth's own wrapper calls that. Only where results and gradients of a
few rows stay the same.

Batches of one length are not padded to another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

HEADS, GROUPS, WIDTH = 4, 2, 64
LENGTHS = (40, 56, 8)
OFF = ("0", "false", "no", "off")  # as Unsloth reads it
TOLERANCE = 0.02  # of a tensor's largest value: bf16 and the order of sums, not another result
# query, key and value of shape (tokens, heads, width), ends of rows, the longest row
Attention = Callable[[Any, Any, Any, Any, int], Any]


def attend_in_one_call() -> bool:
    """Give Unsloth the kernel where it found none; whether it was done. UNSLOTH_TORCH_VARLEN=0 is obeyed."""
    dispatch = _dispatch()
    if dispatch._TORCH_VARLEN_ATTN is not None or os.environ.get("UNSLOTH_TORCH_VARLEN", "1") in OFF:
        return False
    flash = dispatch._LeanFlashVarlen.apply

    def joined(query: Any, key: Any, value: Any, ends: Any, longest: int) -> Any:
        return flash(query, key, value, ends, longest, True, None, -1, 0)

    def varlen_attn(query: Any, key: Any, value: Any, *ends_and_longest: Any, **named: Any) -> Any:
        (ends, _, longest, _), (left, right) = ends_and_longest, named["window_size"]
        return flash(query, key, value, ends, longest, (left, right) == (-1, 0), named["scale"], left, right)

    try:
        if is_attention_by_rows(joined, "cuda"):
            dispatch._TORCH_VARLEN_ATTN = varlen_attn
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

    rng = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    values = [torch.randn(shape, generator=rng).to(device, torch.bfloat16) for shape in shapes]
    weights = torch.randn(shapes[0], generator=rng).to(device)
    ends = torch.tensor([0, *_ends()], dtype=torch.int32, device=device)
    ours = _with_gradients(lambda q, k, v: attention(q, k, v, ends, max(LENGTHS)), values, weights)
    theirs = _with_gradients(_row_by_row, values, weights)
    pairs = zip(ours, theirs, strict=True)
    return all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs)


def _ends() -> Iterator[int]:
    return (sum(LENGTHS[: number + 1]) for number in range(len(LENGTHS)))


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
