"""The engine's command as a value: llama.cpp's server, with llama-server's own flags."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HTTP_THREADS = 160  # llama.cpp blocks one per open stream, also per waiting one; its default is slots + 4
# libgomp's own value for crowded processors. Its default spins for a millisecond at every barrier, so that two engines
# on the same processors take turns at doing nothing: docs/serving.md has the measurement.
OPENMP_SPINS = "1000"


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is started. `context_tokens` is per slot; a slot holds one stream."""

    slots: int = 8
    context_tokens: int = 2048
    threads: int = 1
    gpu_layers: int = 0
    cache_mib: int = 256


def llamacpp_argv(program: list[str], gguf: Path, alias: str, port: int, options: EngineOptions) -> list[str]:
    """The command that serves `gguf` as the model `alias` on a loopback port. Pure.

    Only errors are logged: llama.cpp quotes requests in its warnings.
    """
    return [
        *program,
        *("-m", str(gguf)),
        *("--alias", alias),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("-c", str(options.slots * options.context_tokens)),  # llama.cpp divides -c among the slots
        *("-np", str(options.slots)),
        *("-t", str(options.threads)),
        *("-tb", str(options.threads)),
        *("-ngl", str(options.gpu_layers)),
        *("--cache-ram", str(options.cache_mib)),  # the engine's own default is 8 GiB
        *("--threads-http", str(HTTP_THREADS)),
        *("-lv", "1"),
        "--metrics",
        "--no-ui",
    ]


def llamacpp_environment(api_key: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What the engine's environment adds to `environ`: the key, which every user could read in an argument list."""
    return {"LLAMA_API_KEY": api_key, "GOMP_SPINCOUNT": environ.get("GOMP_SPINCOUNT", OPENMP_SPINS)}


def llamacpp_program() -> list[str]:
    """TUNESHIP_LLAMA_SERVER, else a llama-server on the PATH, else the one inside the package xllamacpp."""
    named = os.environ.get("TUNESHIP_LLAMA_SERVER") or shutil.which("llama-server")
    return [named] if named else [sys.executable, "-m", "server.xllama"]


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
