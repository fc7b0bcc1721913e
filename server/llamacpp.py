"""llama.cpp as a value: from a model and its settings to an argument list and environment. Nothing is started here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelstore import UserError
from server.gguf import ModelShape
from server.machine import Machine

CONTEXT_BOUND_TOKENS = 4096
CONTEXT_STEP_TOKENS = 256  # llama.cpp rounds a slot's context to this
CONTEXT_LEAST_TOKENS = 512
KV_MEMORY_SHARE = 0.25  # of the memory limit, for the KV caches of all engines together
PROMPT_CACHE_SHARE, PROMPT_CACHE_MOST_MIB = 0.02, 512  # llama.cpp's own default is 8 GiB
HTTP_THREADS = 160  # llama.cpp blocks one per open stream; its default (slots + 4) lets waiting streams block /metrics
MAX_STREAMS = HTTP_THREADS - 16
OPENMP_SPINS = "1000"  # docs/serving.md, "Two engines on the same cores", has the measurement


@dataclass(frozen=True)
class EngineSettings:
    """What one engine may use. `context_tokens` is per slot."""

    threads: int
    slots: int
    context_tokens: int
    cache_ram_mib: int


def settings_for(
    machine: Machine, shapes: list[ModelShape], threads: int | None, slots: int, context: int | None
) -> EngineSettings:
    """Settings that all engines share; what the user set stays, the context never exceeds the models'."""
    longest = min(shape.context_tokens for shape in shapes)
    token_bytes = sum(shape.kv_bytes_per_token for shape in shapes)
    affordable = int(machine.memory_bytes * KV_MEMORY_SHARE) // max(1, token_bytes * slots)
    affordable = max(CONTEXT_LEAST_TOKENS, affordable // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS)
    return EngineSettings(
        threads=threads or machine.threads,
        slots=slots,
        context_tokens=min(longest, context or min(CONTEXT_BOUND_TOKENS, affordable)),
        cache_ram_mib=min(PROMPT_CACHE_MOST_MIB, int(machine.memory_bytes * PROMPT_CACHE_SHARE) >> 20),
    )


def engine_argv(program: list[str], gguf: Path, alias: str, socket: Path, settings: EngineSettings) -> list[str]:
    """The command of one engine. A --host that ends in .sock is a Unix socket to llama.cpp."""
    return [
        *program,
        "--model", str(gguf),
        "--alias", alias,
        "--host", str(socket),
        "--ctx-size", str(settings.context_tokens * settings.slots),
        "--parallel", str(settings.slots),
        "--threads", str(settings.threads),
        "--threads-batch", str(settings.threads),
        "--threads-http", str(HTTP_THREADS),
        "--cache-ram", str(settings.cache_ram_mib),
        "--log-verbosity", "2",
        "--metrics",
    ]  # fmt: skip


def engine_program(environ: Mapping[str, str], which: Callable[[str], str | None] = shutil.which) -> list[str]:
    """TUNESHIP_LLAMA_SERVER, else llama-server on the PATH, else llama.cpp's server as a Python extension."""
    named = environ.get("TUNESHIP_LLAMA_SERVER")
    if named:
        if not (found := which(named)):
            raise UserError(f"TUNESHIP_LLAMA_SERVER is {named}, which is no program here. Correct or unset it.")
        return [found]
    found = which("llama-server")
    return [found] if found else [sys.executable, "-m", "server.xllama"]


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Differences to this process's environment. The user's own setting stays."""
    return {"GOMP_SPINCOUNT": environ.get("GOMP_SPINCOUNT", OPENMP_SPINS)}


def socket_folder(temporary: Path, host: str, port: int) -> Path:
    """Where the engines of the server on this address listen; one server per address, so nothing else uses it."""
    return temporary / f"tuneship-{os.getuid()}-{host.replace('/', '_')}-{port}"
