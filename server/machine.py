"""What this machine lets the engines use: processors and memory within the container's limits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """Whole processors and bytes of memory that may be used at once."""

    threads: int
    memory_bytes: int


def this_machine(cgroup: Path = CGROUP) -> Machine:
    """The affinity mask and the physical memory, cut by the cgroup's limits (version 2 or 1)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    quota, limit = _cpu_quota(cgroup), _memory_limit(cgroup)
    return Machine(max(1, min(allowed, quota or allowed)), min(physical, limit or physical))


def _cpu_quota(cgroup: Path) -> int | None:
    """Whole processors, rounded down: threads above the quota are throttled and collapse throughput."""
    found = _numbers(cgroup / "cpu.max")
    if not found:
        quota, period = _numbers(cgroup / "cpu/cpu.cfs_quota_us"), _numbers(cgroup / "cpu/cpu.cfs_period_us")
        found = quota + period
    if len(found) != 2 or found[0] <= 0 or found[1] <= 0:
        return None
    return max(1, found[0] // found[1])


def _memory_limit(cgroup: Path) -> int | None:
    found = _numbers(cgroup / "memory.max") or _numbers(cgroup / "memory/memory.limit_in_bytes")
    return found[0] if found else None


def _numbers(path: Path) -> list[int]:
    """Empty where there is no such file, or no limit ("max")."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
