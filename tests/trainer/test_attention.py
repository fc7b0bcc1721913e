"""Attention of rows that share a batch: the check before it is used, and that nothing changes where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.backends.attention import HEADS, is_attention_by_rows

ROOT = Path(__file__).parents[2]


def masked(
    query: Any, key: Any, value: Any, ends: Any, *_: Any, causal: bool = True, apart: bool = True, **named: Any
) -> Any:
    """In one call with a mask, as an independent way to the same."""
    numbers = torch.arange(len(query))
    rows = torch.bucketize(numbers, ends[1:], right=True)
    mask = torch.ones(len(query), len(query), dtype=torch.bool)
    if causal:
        mask &= numbers[:, None] >= numbers[None]
    if (left := named["window_size"][0]) >= 0:
        mask &= numbers[:, None] - numbers[None] <= left
    if apart:
        mask &= rows[:, None] == rows[None]
    heads = (each.transpose(0, 1).repeat_interleave(HEADS // each.shape[1], 0)[None] for each in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)[0].transpose(0, 1)


def test_only_attention_of_each_row_alone_is_taken() -> None:
    assert is_attention_by_rows(masked, "cpu")
    assert not is_attention_by_rows(partial(masked, apart=False), "cpu")
    assert not is_attention_by_rows(partial(masked, causal=False), "cpu")
    half = lambda q, k, v, *rows, **named: masked(q, k, (v + v.detach()) / 2, *rows, **named)  # noqa: E731
    assert not is_attention_by_rows(half, "cpu")


def test_a_window_that_is_not_obeyed_is_seen() -> None:
    def narrow(*given: Any, **named: Any) -> Any:
        window = named["window_size"]
        return masked(*given, **{**named, "window_size": window if window == (-1, 0) else (4, 0)})

    assert not is_attention_by_rows(narrow, "cpu")


@pytest.mark.skipif(not (find_spec("unsloth") and find_spec("triton")), reason="Unsloth is not in this environment")
def test_where_the_kernel_cannot_run_unsloth_keeps_its_way_and_batches_of_one_length_are_not_padded() -> None:
    code = """
import unsloth, unsloth.models
from unsloth.utils import attention_dispatch
from trainer.backends.attention import attend_at_full_length, attend_in_one_call
attention_dispatch._TORCH_VARLEN_ATTN = None  # as with torch 2.11
assert not attend_in_one_call() and attention_dispatch._TORCH_VARLEN_ATTN is None
attend_at_full_length()
assert attention_dispatch._CUDNN_LENGTH_BUCKET == 0
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rows of a batch attend one by one" in done.stderr
