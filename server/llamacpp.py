"""llama.cpp as an engine: one process per GGUF file, with llama-server's own flags."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from modelstore import Base, Manifest, Run
from modelstore.machine import llamacpp_folder
from server.engine import (
    OPENMP_SPINS,
    EngineOptions,
    EnginePlan,
    Probes,
    ServedModel,
    Weights,
    free_port,
    served_models,
)

# llama.cpp blocks one of its HTTP threads per open stream, also per waiting one; its default is slots + 4
LEAST_REQUESTS, REQUESTS_PER_SLOT = 144, 4
SPARE_THREADS = 16  # for proofs and metrics, without which a busy engine would look like one that hangs
# characters of prompt that are read in the time of one more pass for each of 128 tokens: docs/serving.md
PASS_COSTS_ON_CPU, PASS_COSTS_ON_GPU = 1_000, 50_000
START_S, READ_BYTES_PER_S = 60.0, 50e6  # a slow network disk; the limit is for engines that hang
PROBES = Probes(
    steps=re.compile(r"^llamacpp:n_decode_total (\d+)", re.MULTILINE),
    running="llamacpp:requests_processing",
    waiting="llamacpp:requests_deferred",
    generated="llamacpp:tokens_predicted_total",
    template_path="/props",
)


class LlamaCpp:
    """Two GGUF files, never one with a switched adapter: llama.cpp reuses cached state of the other adapter then."""

    name = "llamacpp"
    weights: tuple[str, ...] = ("gguf",)

    def plans(self, run: Run, base: Base, weights: Weights, options: EngineOptions) -> tuple[EnginePlan, ...]:
        """One process each for the run and its base."""
        tuned, original = served_models(run, base)
        return (
            _plan(tuned, weights.tuned, run.manifest, options),
            _plan(original, weights.base, base.manifest, options),
        )


def _plan(model: ServedModel, gguf: Path, manifest: Manifest, options: EngineOptions) -> EnginePlan:
    port, key = free_port(), secrets.token_urlsafe(24)
    argv = llamacpp_argv(llamacpp_program(), gguf, model.names[0], port, options)
    limit_s = START_S + gguf.stat().st_size / READ_BYTES_PER_S
    environment = llamacpp_environment(key, os.environ)
    return EnginePlan(
        (model,),
        port,
        key,
        argv,
        environment,
        PROBES,
        limit_s,
        manifest.chat_template_sha256,
        most_requests=_most_requests(options),
        slots=options.slots,
        pass_costs=PASS_COSTS_ON_GPU if options.gpu_layers else PASS_COSTS_ON_CPU,
    )


def _most_requests(options: EngineOptions) -> int:
    return max(LEAST_REQUESTS, REQUESTS_PER_SLOT * options.slots)


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
        # not 8 GiB of main memory for prompts: on a GPU every request would wait for copies, and a request for a slot
        # that is still at work would change what that computes
        *("--cache-ram", "0"),
        *("--threads-http", str(_most_requests(options) + SPARE_THREADS)),
        *("-lv", "1"),
        "--metrics",
        "--no-ui",
    ]


def llamacpp_environment(api_key: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What the engine's environment adds to `environ`: the key, which every user could read in an argument list."""
    return {"LLAMA_API_KEY": api_key, "GOMP_SPINCOUNT": environ.get("GOMP_SPINCOUNT", OPENMP_SPINS)}


def llamacpp_program() -> list[str]:
    """TUNESHIP_LLAMA_SERVER, else that of the folder that TUNESHIP_LLAMACPP names, else the one compiled here, else one
    on the PATH, else that of the package xllamacpp.
    """
    if program := os.environ.get("TUNESHIP_LLAMA_SERVER"):
        return [program]
    folder = llamacpp_folder()
    program = str(folder / "llama-server") if folder else shutil.which("llama-server")
    return [program] if program else [sys.executable, "-m", "server.xllama"]


@cache
def llamacpp_gpu(program: str) -> str:
    """The first GPU that this llama-server can use, as it names it; empty for a build without one."""
    try:
        said = subprocess.run([program, "--list-devices"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"^\s+((?:CUDA|ROCm|Vulkan|Metal|SYCL)\w*: .*)$", said.stdout, re.MULTILINE)
    return found[1].strip() if found else ""
