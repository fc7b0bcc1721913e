"""A Triton kernel for the doctor's probe. The one file that imports Triton, which compiles from a file's source."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

BLOCK = 256


@triton.jit  # type: ignore[untyped-decorator]
def _add(x_ptr, y_ptr, sum_ptr, count, size: tl.constexpr):  # type: ignore[no-untyped-def]
    offsets = tl.program_id(axis=0) * size + tl.arange(0, size)
    inside = offsets < count
    x = tl.load(x_ptr + offsets, mask=inside)
    y = tl.load(y_ptr + offsets, mask=inside)
    tl.store(sum_ptr + offsets, x + y, mask=inside)


def add(x: Any, y: Any) -> Any:
    """x + y by the kernel; compiles it at the first call."""
    import torch

    total = torch.empty_like(x)
    _add[(triton.cdiv(x.numel(), BLOCK),)](x, y, total, x.numel(), size=BLOCK)
    return total
