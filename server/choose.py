"""Chooses what the operator left open: the engine, and its size for this machine. Every choice has a reason."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from modelstore import Run, Store, UserError
from modelstore.machine import cpu_threads, processor_multiplies_bf16
from server.engine import EngineKind, EngineOptions
from server.llamacpp import LlamaCpp, llamacpp_gpu, llamacpp_program
from server.memory import free_memory_bytes, gpu_memory_bytes, kv_bytes
from server.plan import Wish
from server.purpose import Figures, Purpose, best, measured
from server.vllm import Vllm, vllm_python

ENGINES: dict[str, EngineKind] = {"llamacpp": LlamaCpp(), "vllm": Vllm()}
ALL_LAYERS = 999
# of llama.cpp with all layers on a GPU: more have nothing to compute, and wait for each other at every token
GPU_THREADS = 1
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
    purpose: Purpose | None = None
    because: str = "it was asked for"


def choose(asked: Asked, store: Store, ref: str, follows: bool) -> tuple[Wish, list[str]]:
    """The whole wish, and a line for each thing that was chosen here."""
    run, said = store.run(ref), []
    if asked.purpose:
        asked, why = choose_for(asked.purpose, asked, run, 2 + follows)
        said.append(why)
    engine, reason = choose_engine(asked, run)
    said.append(f"engine: {engine.name}, because {reason}")
    cache = store.cache if os.access(store.path, os.W_OK) else None
    options = EngineOptions(context_tokens=asked.context_tokens, threads=asked.threads or cpu_threads(), cache=cache)
    gpu_memory = gpu_memory_bytes()
    weights, why = choose_weights(asked.weights, engine, run, gpu_memory, 2 + follows)
    said += [f"weights: {weights}, because {why}"] if why else []
    if engine.name == "llamacpp":
        layers, why = choose_layers(asked.gpu_layers)
        said += [f"GPU layers: {layers}, because {why}"] if why else []
        options = replace(options, gpu_layers=layers)
        if layers and asked.gpu_layers is None and not asked.threads:
            options = replace(options, threads=GPU_THREADS)
            said.append(f"threads: {GPU_THREADS}, because all layers are on the GPU")
    elif asked.gpu_layers is not None:
        raise UserError("--gpu-layers is for llama.cpp; vLLM puts all of a model on the GPU.")
    on_gpu = bool(gpu_memory) and (engine.name == "vllm" or options.gpu_layers > 0)
    # one more starts beside them at a change; an adapter is loaded into the one that runs
    processes = 1 if weights == "adapter" else 2 + follows
    if on_gpu and engine.name == "vllm":
        options = replace(options, gpu_share=GPU_MEMORY / processes, gpu_bytes=gpu_memory)
    elif engine.name == "vllm" and not processor_multiplies_bf16():
        options = replace(options, native_bf16=False)
        said.append("arithmetic: fp32, because this processor has none for bf16")
    free = gpu_memory if on_gpu else free_memory_bytes()
    # vLLM on a GPU has pages for all streams together: a slot of it reserves nothing
    is_paged = on_gpu and engine.name == "vllm"
    wanted = PAGED_SLOTS if is_paged else GPU_SLOTS if on_gpu else CPU_SLOTS
    reserved = 0 if is_paged else kv_bytes(run, store)
    slots, why = choose_slots(asked, wanted, reserved, free / processes)
    said.append(f"slots: {slots} in each process, because {why}")
    cache_gib = max(1, -(-slots * options.context_tokens * kv_bytes(run, store) // (1 << 30)))
    options = replace(options, slots=slots, kv_cache_gib=cache_gib)
    return Wish(engine, options, weights, asked.quantization, asked.allowed_signers), said


def choose_for(purpose: Purpose, asked: Asked, run: Run, processes: int) -> tuple[Asked, str]:
    """What is open in `asked`, by what was measured of the engines and weights that this machine and run have."""
    found = measured("gpu" if gpu_memory_bytes() else "cpu")
    able = [each for each in found.figures if _able(each, asked, run, processes)] if found else []
    fastest = best(purpose, able)
    want = f"for {purpose.goal} with {purpose.streams} stream{'s' * (purpose.streams > 1)}"
    if found is None or fastest is None:
        return asked, f"{want}: nothing was measured that this machine, this run and the other options allow"
    because = "of its measured speed" if asked.engine == "auto" else asked.because
    chosen = replace(asked, engine=fastest.engine, weights=fastest.weights, because=because)
    at = f"{fastest.streams} stream{'s' * (fastest.streams > 1)}"
    seen = f"{fastest.tokens_per_s:,.0f} tokens/s and {fastest.answer_s:.2g} s for 128 tokens at {at}"
    said = f"{want}: {fastest}, because of {seen} ({found.model} on {found.machine}: docs/benchmarks.md)"
    return replace(chosen, quantization=fastest.quantization), said


def _able(each: Figures, asked: Asked, run: Run, processes: int) -> bool:
    """Whether nothing stands against it: other options, what is installed, the run's files, the GPU's memory."""
    if asked.engine not in ("auto", each.engine) or asked.weights not in (None, each.weights):
        return False
    if asked.quantization not in (None, each.quantization):
        return False
    on_gpu = gpu_memory_bytes()
    if each.engine == "vllm":
        # its reader of GGUF files is experimental: only for those who ask for it
        is_there = vllm_python() is not None and asked.gpu_layers is None and each.weights in ("merged", "adapter")
    else:
        is_there = not on_gpu or choose_layers(asked.gpu_layers)[0] > 0
    files = [a for a in run.manifest.artifacts if a.kind == each.weights and a.quantization == each.quantization]
    needed = ROOM * processes * sum(artifact.bytes for artifact in files)
    return is_there and bool(files) and (not on_gpu or needed <= GPU_MEMORY * on_gpu)


def choose_engine(asked: Asked, run: Run) -> tuple[EngineKind, str]:
    """What was asked for, or what the options imply, else vLLM where nothing stands against it."""
    if asked.engine != "auto":
        return ENGINES[asked.engine], asked.because
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


def choose_slots(asked: Asked, most: int, kv: int, free_bytes: float) -> tuple[int, str]:
    """As many streams as the machine can use, or as there will be; fewer where their caches would not fit."""
    if asked.slots is not None:
        return asked.slots, "it was asked for"
    wanted, why = most, _WHY_SLOTS[most]
    if asked.purpose and asked.purpose.streams < most:
        wanted, why = asked.purpose.streams, "so many streams are to be served"
    fitting = int(MEMORY_FOR_CACHE * free_bytes / (asked.context_tokens * kv)) if kv else wanted
    if fitting < wanted:
        return max(1, fitting), f"the caches of {wanted} would not fit into the memory"
    return wanted, why


_WHY_SLOTS = {
    CPU_SLOTS: "more are no faster on a CPU",
    GPU_SLOTS: "a GPU is busy with so many",
    PAGED_SLOTS: "vLLM is still faster with so many and reserves nothing for them",
}
