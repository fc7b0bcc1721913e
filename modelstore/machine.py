"""How much of this machine a program may use; trainer and server must not disagree about it."""

from __future__ import annotations

import os
from pathlib import Path

from modelstore.errors import UserError


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


def llamacpp_folder() -> Path | None:
    """The llama.cpp that TUNESHIP_LLAMACPP names, else the one that was compiled for this machine (tools/llamacpp.py).

    llama-quantize, llama-server and convert_hf_to_gguf.py lie in it. None where there is neither. Raises UserError
    where the folder that was named lacks a program.
    """
    if named := os.environ.get("TUNESHIP_LLAMACPP"):
        if lacking := [each for each in ("llama-quantize", "llama-server") if not (Path(named) / each).exists()]:
            raise UserError(
                f"TUNESHIP_LLAMACPP names {named}, and there is no {lacking[0]} in it. Name the folder of a complete "
                "llama.cpp, or unset the variable."
            )
        return Path(named).resolve()
    folder = Path(__file__).resolve().parents[1] / ".venv" / "llamacpp"
    return folder if (folder / "stamp").exists() else None


def processor_multiplies_bf16() -> bool:
    """Whether the processor has bf16 arithmetic; where it has none, bf16 is emulated and far slower than fp32.

    False where the system does not say.
    """
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = {flag for line in info.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
