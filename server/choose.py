"""Chooses what the operator left open: the engine, and its size for this machine. Every choice has a reason."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from modelstore import Base, Run, Store, UserError
from modelstore.machine import cpu_threads, processor_multiplies_bf16
from server.engine import EngineKind, EngineOptions
from server.llamacpp import LlamaCpp, llamacpp_gpu, llamacpp_program
from server.plan import Wish
from server.vllm import Vllm, vllm_python

ENGINES: dict[str, EngineKind] = {"llamacpp": LlamaCpp(), "vllm": Vllm()}
ALL_LAYERS = 999
CPU_SLOTS, GPU_SLOTS, PAGED_SLOTS = 8, 64, 256
MEMORY_FOR_CACHE = 0.5  # of what is free, for the key-value caches of all engines
ROOM = 1.4  # weights, activations and a cache worth having, against the weights alone
GPU_MEMORY = 0.9  # what vLLM's processes may reserve together
DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class Asked:
    """What the command line says; None is left to the machine."""

    engine: str = "auto"
    weights: str | None = None
    quantization: str | None = None
    slots: int | None = None
    context_tokens: int = DEFAULT_CONTEXT
    threads: int | None = None
    gpu_layers: int | None = None
    allowed_signers: Path | None = None


def choose(asked: Asked, store: Store, ref: str, follows: bool) -> tuple[Wish, list[str]]:
    """The whole wish, and a line for each thing that was chosen here."""
    run = store.run(ref)
    engine, reason = choose_engine(asked, run)
    said = [f"engine: {engine.name}, because {reason}"]
    threads, cache = asked.threads or cpu_threads(), store.cache if os.access(store.path, os.W_OK) else None
    options = EngineOptions(context_tokens=asked.context_tokens, threads=threads, cache=cache)
    gpu_memory = gpu_memory_bytes()
    weights, why = choose_weights(asked.weights, engine, run, gpu_memory, 2 + follows)
    said += [f"weights: {weights}, because {why}"] if why else []
    if engine.name == "llamacpp":
        layers, why = choose_layers(asked.gpu_layers)
        said += [f"GPU layers: {layers}, because {why}"] if why else []
        # a prompt's state would be copied from the card to main memory for each request that takes its slot
        options = replace(options, gpu_layers=layers, cache_mib=0 if layers else options.cache_mib)
    elif asked.gpu_layers is not None:
        raise UserError("--gpu-layers is for llama.cpp; vLLM puts all of a model on the GPU.")
    on_gpu = bool(gpu_memory) and (engine.name == "vllm" or options.gpu_layers > 0)
    # one more starts beside them at a change; an adapter is loaded into the one that runs
    processes = 1 if weights == "adapter" else 2 + follows
    if on_gpu and engine.name == "vllm":
        options = replace(options, gpu_share=GPU_MEMORY / processes)
    elif engine.name == "vllm" and not processor_multiplies_bf16():
        options = replace(options, native_bf16=False)
        said.append("arithmetic: fp32, because this processor has none for bf16")
    free = gpu_memory if on_gpu else free_memory_bytes()
    # vLLM on a GPU has pages for all streams together: a slot of it reserves nothing
    is_paged = on_gpu and engine.name == "vllm"
    wanted = PAGED_SLOTS if is_paged else GPU_SLOTS if on_gpu else CPU_SLOTS
    reserved = 0 if is_paged else kv_bytes(run, store)
    slots, why = choose_slots(asked.slots, wanted, options.context_tokens, reserved, free / processes)
    said.append(f"slots: {slots} in each process, because {why}")
    cache_gib = max(1, -(-slots * options.context_tokens * kv_bytes(run, store) // (1 << 30)))
    options = replace(options, slots=slots, kv_cache_gib=cache_gib)
    return Wish(engine, options, weights, asked.quantization, asked.allowed_signers), said


def choose_engine(asked: Asked, run: Run) -> tuple[EngineKind, str]:
    """What was asked for, or what the options imply, else vLLM where nothing stands against it."""
    if asked.engine != "auto":
        return ENGINES[asked.engine], "it was asked for"
    if asked.weights in ("merged", "adapter"):
        return ENGINES["vllm"], f"llama.cpp does not serve {asked.weights} weights"
    if asked.quantization or asked.weights == "gguf" or asked.gpu_layers is not None:
        return ENGINES["llamacpp"], "the options name GGUF files or layers"
    if obstacle := _against_vllm(run):
        return ENGINES["llamacpp"], obstacle
    return ENGINES["vllm"], "there is an NVIDIA GPU and vLLM is installed"


def _against_vllm(run: Run) -> str:
    if not gpu_memory_bytes():
        return "there is no NVIDIA GPU"
    if vllm_python() is None:
        return "vLLM is not installed"
    has_merged = any(artifact.kind == "merged" for artifact in run.manifest.artifacts)
    return "" if has_merged else "the run has no merged weights"


def choose_weights(
    asked: str | None, engine: EngineKind, run: Run, gpu_memory: int, processes: int
) -> tuple[str | None, str]:
    """The engine's default, but an adapter where the processes with merged weights would not fit on the GPU."""
    sizes = {kind: sum(a.bytes for a in run.manifest.artifacts if a.kind == kind) for kind in ("merged", "adapter")}
    needed = ROOM * processes * sizes["merged"]
    if asked or engine.name != "vllm" or not gpu_memory or not sizes["adapter"] or needed <= GPU_MEMORY * gpu_memory:
        return asked, ""
    weights = f"{processes} processes with {sizes['merged'] / 1e9:.1f} GB each"
    return "adapter", f"{weights} and their caches would not fit into {gpu_memory / 1e9:.0f} GB of the GPU"


def choose_layers(asked: int | None) -> tuple[int, str]:
    """All layers on the GPU where the engine at hand was built for one."""
    if asked is not None:
        return asked, ""
    program = llamacpp_program()
    gpu = llamacpp_gpu(program[0]) if len(program) == 1 else ""
    return (ALL_LAYERS, f"{Path(program[0]).name} was built for {gpu}") if gpu else (0, "")


def choose_slots(asked: int | None, wanted: int, context: int, kv: int, free_bytes: float) -> tuple[int, str]:
    """As many streams as the processors or the GPU can use, fewer where their caches would not fit."""
    if asked is not None:
        return asked, "it was asked for"
    fitting = int(MEMORY_FOR_CACHE * free_bytes / (context * kv)) if kv else wanted
    if fitting < wanted:
        return max(1, fitting), f"the caches of {wanted} would not fit into the memory"
    return wanted, _WHY_SLOTS[wanted]


_WHY_SLOTS = {
    CPU_SLOTS: "more are no faster on a CPU",
    GPU_SLOTS: "a GPU is busy with so many",
    PAGED_SLOTS: "vLLM is still faster with so many and reserves nothing for them",
}


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
