"""Times of optimizer steps, and where the GPU's time of a step goes."""

from __future__ import annotations

import time
from typing import Any

PROFILED_STEPS = 2
KERNELS = 25  # named in a profile; the others are summed up


class Clock:
    """When each of `timed` steps ended, and the highest memory until then; steps after them may be profiled."""

    def __init__(self, timed: int, is_profiled: bool) -> None:
        self.times, self.peaks_gib, self.profile = [time.perf_counter()], list[float](), None
        self._timed, self._is_profiled = timed, is_profiled
        self._profiler: Any = None

    def tick(self) -> None:
        """A step ended."""
        done = len(self.times)
        if done <= self._timed:
            self.times.append(time.perf_counter())
            self.peaks_gib.append(_peak_gib())
        if self._is_profiled and done == self._timed:
            from torch.profiler import ProfilerActivity, profile

            self._profiler, self._began = profile(activities=[ProfilerActivity.CUDA]), time.perf_counter()
            self._profiler.start()
            self._left = PROFILED_STEPS
        elif self._profiler:
            self._left -= 1
            if not self._left:
                self._profiler.stop()
                self.profile = _kernels(self._profiler, time.perf_counter() - self._began)
                self._profiler = None


def _peak_gib() -> float:
    import torch

    return round(torch.cuda.max_memory_reserved() / 2**30, 3) if torch.cuda.is_available() else 0.0


def _kernels(profiler: Any, wall_s: float) -> dict[str, Any]:
    """The GPU's kernels by the time that they took, in ms of one step."""
    found = [
        (entry.key, entry.self_device_time_total / 1e3 / PROFILED_STEPS, entry.count // PROFILED_STEPS)
        for entry in profiler.key_averages()
    ]
    found = sorted((entry for entry in found if entry[1] > 0), key=lambda entry: -entry[1])
    return {
        "steps": PROFILED_STEPS,
        "wall_ms_of_a_step": round(1e3 * wall_s / PROFILED_STEPS, 1),
        "kernels_ms_of_a_step": round(sum(ms for _, ms, _ in found), 1),
        "other_kernels_ms": round(sum(ms for _, ms, _ in found[KERNELS:]), 1),
        "kernels": [{"name": name[:120], "ms": round(ms, 2), "calls": calls} for name, ms, calls in found[:KERNELS]],
    }
