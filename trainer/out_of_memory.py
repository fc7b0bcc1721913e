"""Tells that memory ran out, as libraries and child programs report it, and gives back what an attempt held."""

from __future__ import annotations

import gc
import signal

MESSAGES = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")
CHILD_MESSAGES = ("memoryerror", "bad_alloc", "failed to allocate", "failed to map segment", *MESSAGES)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the card, of the processor's allocator, or of Python."""
    if isinstance(error, MemoryError):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return True
    return isinstance(error, RuntimeError | OSError) and any(text in str(error).lower() for text in MESSAGES)


def child_ran_out(exit_code: int, said: str) -> bool:
    """Whether a child program ended for want of memory: by its own words, or killed by the kernel without any."""
    return exit_code == -signal.SIGKILL or any(text in said.lower() for text in CHILD_MESSAGES)


def first_line(error: BaseException) -> str:
    """What to say of an error in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def give_back() -> None:
    """The tensors of an attempt hang in reference cycles. The peak that a GPU's allocator notes begins anew."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
