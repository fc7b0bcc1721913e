"""How much of this machine a program may use; trainer and server must not disagree about it."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_threads() -> int:
    """Processors that this process may use at once: the affinity mask, cut by the cgroup quota.

    Threads above the quota are throttled and collapse throughput to a few tokens/s.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return allowed
