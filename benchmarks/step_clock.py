"""Times of optimizer steps, and where the GPU's time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

PROFILED_STEPS = 2
KERNELS = 25  # named in a profile; the others are summed up
WAITS = 12
Span = tuple[int, float, float, str]  # stream, start and end in microseconds, kernel


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
    events = [each for each in profiler.events() if each.device_type.name == "CUDA"]
    spans = [(each.device_resource_id, each.time_range.start, each.time_range.end, each.name) for each in events]
    return {
        "steps": PROFILED_STEPS,
        "wall_ms_of_a_step": round(1e3 * wall_s / PROFILED_STEPS, 1),
        "kernels_ms_of_a_step": round(sum(ms for _, ms, _ in found), 1),
        "other_kernels_ms": round(sum(ms for _, ms, _ in found[KERNELS:]), 1),
        "kernels": [{"name": name[:120], "ms": round(ms, 2), "calls": calls} for name, ms, calls in found[:KERNELS]],
        **idle(spans),
    }


def idle(spans: Iterable[Span]) -> dict[str, Any]:
    """How long the busiest stream had nothing to do in one step, in ms, and between which kernels, longest first."""
    streams = defaultdict[int, list[Span]](list)
    for span in spans:
        streams[span[0]].append(span)
    if not streams:
        return {}
    busiest = max(streams.values(), key=lambda those: sum(end - start for _, start, end, _ in those))
    between, until = defaultdict[tuple[str, str], list[float]](list), 0.0
    for before, after in pairwise(sorted(busiest, key=lambda span: span[1])):
        until = max(until, before[2])
        if after[1] > until:
            between[before[3], after[3]].append((after[1] - until) / 1e3)
    found = sorted(between.items(), key=lambda entry: -sum(entry[1]))
    return {
        "idle_ms_of_a_step": round(sum(map(sum, between.values())) / PROFILED_STEPS, 1),
        "waits": [
            {
                "before": before[:80],
                "after": after[:80],
                "ms": round(sum(waits) / PROFILED_STEPS, 2),
                "longest_ms": round(max(waits), 2),
                "times": len(waits) // PROFILED_STEPS,
            }
            for (before, after), waits in found[:WAITS]
        ],
    }
