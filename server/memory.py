"""What there is of memory, and what a token takes of it."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

from modelstore import Base, Run, Store


def kv_bytes(run: Run, store: Store) -> int:
    """Bytes of the key-value cache for one token, 16 bits a number, from the model's config; 0 where there is none."""
    base = store.base(str(run.manifest.base.get("id")))
    for folder in _folders(run, base):
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            heads = int(config["num_attention_heads"])
            width = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
            return 2 * 2 * int(config["num_hidden_layers"]) * int(config.get("num_key_value_heads") or heads) * width
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 0


def _folders(run: Run, base: Base) -> list[Path]:
    return [run.path / "merged", base.path / "hf"]


@cache
def gpu_memory_bytes() -> int:
    """Of the first NVIDIA GPU; 0 without one."""
    argv = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(said.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def free_memory_bytes() -> int:
    """What this container can still take: the machine's available memory, cut by the cgroup's limit."""
    available = 0
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(available, max(0, int(limit) - used)) if limit != "max" else available
    except (OSError, ValueError):
        return available or 8 << 30
