"""vLLM as an engine: merged 16-bit weights in two processes, or one process with the base and an adapter."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from modelstore import Base, Manifest, Run, UserError
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
from server.template import is_template

ROOT = Path(__file__).resolve().parent.parent
START_S, READ_BYTES_PER_S = 420.0, 25e6  # it compiles for minutes on a GPU
SHUTDOWN_S = 10  # without a limit SIGTERM can hang for two minutes
RANKS = (
    16,
    32,
    64,
    128,
    256,
    320,
    512,
)  # values that vLLM takes for --max-lora-rank; from 16, so that most runs share a process
GGUF_PLUGIN = ("vllm-gguf-plugin", "0.0.5")
# beside weights and cache: below 2 GiB with Phi-3-mini, by vLLM's own log; CUDA graphs, 1 GiB, come on top of its share
BESIDE_BYTES, BESIDE_SHARE = 3 << 29, 0.02
GGUF_IN_MEMORY = 2  # of a file's size: the plugin unpacks embeddings; 1.7 with Q8_0
PROBES = Probes(
    steps=re.compile(r"^vllm:iteration_tokens_total_count\{[^}]*\} (\d+)", re.MULTILINE),
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    generated="vllm:generation_tokens_total",
)


class Vllm:
    """Merged weights by default; an adapter on the base so that both share one process; GGUF files by a plugin."""

    name = "vllm"
    weights: tuple[str, ...] = ("merged", "adapter", "gguf")

    def plans(self, run: Run, base: Base, weights: Weights, options: EngineOptions) -> tuple[EnginePlan, ...]:
        """One process each, or one for both when the weights are an adapter."""
        tuned, original = served_models(run, base)
        if weights.kind == "adapter":
            # two, because after a change the run before still finishes its requests
            lora = ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(_rank(weights.tuned))]
            both = (replace(tuned, adapter=weights.tuned), original)
            plan = _plan(both, weights, weights.base, weights.base, base.manifest, options, original, lora)
            return (replace(plan, environment={**plan.environment, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}),)
        if weights.kind == "gguf":
            _need_gguf_plugin()
        return (
            _plan((tuned,), weights, weights.tuned, run.folder("merged"), run.manifest, options, tuned),
            _plan((original,), weights, weights.base, base.folder("hf"), base.manifest, options, original),
        )


def _plan(
    models: tuple[ServedModel, ...],
    weights: Weights,
    path: Path,
    folder: Path,
    manifest: Manifest,
    options: EngineOptions,
    named: ServedModel,
    extra: list[str] | None = None,
) -> EnginePlan:
    """One process with the weights at `path`; config, tokenizer and template lie in `folder`, also for a GGUF file."""
    port, key = free_port(), secrets.token_urlsafe(24)
    template = folder / "chat_template.jinja"
    _check_template(template, manifest)
    argv = vllm_argv(vllm_program(), path, named.names[0], port, options, template if template.is_file() else None)
    limit_s = START_S + weights.bytes / READ_BYTES_PER_S
    environment = vllm_environment(key, options)
    if weights.kind != "adapter":
        argv += cache_argv(path, options)
    if weights.kind == "gguf":
        argv += _beside_gguf(folder)
        # of its plugins that one alone: the one for bitsandbytes registers its kernels a second time under it
        environment |= {"VLLM_PLUGINS": os.environ.get("VLLM_PLUGINS", "gguf")}
    return EnginePlan(
        models,
        port,
        key,
        [*argv, *(extra or [])],
        environment,
        PROBES,
        limit_s,
        has_children=True,
        stop_limit_s=SHUTDOWN_S + 5.0,
    )


def _beside_gguf(folder: Path) -> list[str]:
    """What vLLM takes from the run's or base's `folder` for a GGUF file. llama.cpp's converter writes Mistral's layout,
    which Unsloth also gives to Phi-3, as `llama`, and the plugin knows no other name for it.
    """
    said = ["--tokenizer", str(folder), "--hf-config-path", str(folder)]
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") != "mistral":
        return said
    return [*said, "--hf-overrides", json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})]


def vllm_argv(
    program: list[str], weights: Path, name: str, port: int, options: EngineOptions, template: Path | None
) -> list[str]:
    """The command that serves `weights` as the model `name` on a loopback port. Pure."""
    argv = [
        *program,
        *("--model", str(weights)),
        *("--served-model-name", name),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--max-model-len", str(options.context_tokens)),
        *("--max-num-seqs", str(options.slots)),
        *("--generation-config", "vllm"),  # sampling as the request says, not as a file beside the weights
        *("--shutdown-timeout", str(SHUTDOWN_S)),
        "--disable-uvicorn-access-log",
    ]
    if options.gpu_share:
        argv += ["--gpu-memory-utilization", f"{options.gpu_share:.2f}"]
    else:
        argv.append("--enforce-eager")  # compiling for a CPU takes longer than most uses of it
    if not options.native_bf16:
        argv += ["--dtype", "float32"]
    if template:
        argv += ["--chat-template", str(template)]
        if parser := _tool_parser(template.read_text(encoding="utf-8")):
            argv += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    return argv


def cache_argv(weights: Path, options: EngineOptions) -> list[str]:
    """The size of the key-value cache on a GPU, for processes that start side by side: each would measure what is free
    while the other fills the card, and keep a small cache, or none. Empty where vLLM has to find it out.
    """
    files = weights.glob("*.safetensors") if weights.is_dir() else [weights]
    read = sum(file.stat().st_size for file in files) * (1 if weights.is_dir() else GGUF_IN_MEMORY)
    cache = int(options.gpu_bytes * (options.gpu_share - BESIDE_SHARE)) - read - BESIDE_BYTES
    return ["--kv-cache-memory-bytes", str(cache)] if options.gpu_bytes and cache > 0 else []


def vllm_environment(api_key: str, options: EngineOptions) -> dict[str, str]:
    """Key, no network, no usage reports, warnings unless VLLM_LOGGING_LEVEL is set, threads within the quota."""
    environment = {
        "VLLM_API_KEY": api_key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # the engine's process keeps what the server's has imported, 16 to 37 s of a start on H100s; where a fork is not
        # safe vLLM starts it anew all the same: on a CPU, in WSL, with CUDA in use
        "VLLM_WORKER_MULTIPROC_METHOD": os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "fork"),
    }
    if options.cache and "VLLM_CACHE_ROOT" not in os.environ:  # compiling takes minutes, and seconds from there
        environment |= {
            "VLLM_CACHE_ROOT": str(options.cache / "vllm"),
            "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(options.cache / "triton")),
        }
    if not options.gpu_share:
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines bound to the same processors would take turns
            "OMP_NUM_THREADS": str(options.threads),
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", OPENMP_SPINS),
        }
    return environment


def vllm_python() -> str | None:
    """TUNESHIP_VLLM_PYTHON, else the environment .venv/vllm, else this interpreter; None where vLLM is nowhere."""
    if named := os.environ.get("TUNESHIP_VLLM_PYTHON"):
        return named
    own = ROOT / ".venv" / "vllm" / "bin" / "python"
    if own.exists():
        return str(own)
    return sys.executable if importlib.util.find_spec("vllm") else None


def vllm_program() -> list[str]:
    """vLLM's OpenAI server by its module: the CPU package's own command lacks the metadata that it looks for."""
    python = vllm_python()
    if python is None:
        raise UserError(
            "vLLM is not installed. `python3 tools/envs.py vllm` makes .venv/vllm with its CPU build (3 GB); on a GPU "
            "machine install vllm and set TUNESHIP_VLLM_PYTHON to that environment's python. Or take --engine llamacpp."
        )
    return [python, str(ROOT / "server" / "vllm_start.py")]


def _need_gguf_plugin() -> None:
    """GGUF left vLLM's own tree."""
    code = f"from importlib.metadata import version; version({GGUF_PLUGIN[0]!r})"
    if subprocess.run([vllm_program()[0], "-c", code], capture_output=True, check=False).returncode:
        raise UserError(
            f"vLLM reads GGUF files with a plugin, which is not in its environment: "
            f"{vllm_program()[0]} -m pip install --no-deps {'=='.join(GGUF_PLUGIN)}. Or take --engine llamacpp."
        )


def _rank(adapter: Path) -> int:
    try:
        rank = int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
        return next(allowed for allowed in RANKS if rank <= allowed)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(
            f"{adapter / 'adapter_config.json'} names no LoRA rank up to {RANKS[-1]} ({type(error).__name__}). "
            "Serve the merged weights: --weights merged."
        ) from None


def _check_template(template: Path, manifest: Manifest) -> None:
    """vLLM does not tell its template, so the file that it gets is compared."""
    if not manifest.chat_template_sha256 or not template.is_file():
        return
    if not is_template(template.read_text(encoding="utf-8"), manifest.chat_template_sha256):
        raise UserError(
            f"{template} is another chat template than the one that {manifest.id} was trained with "
            f"({hashlib.sha256(template.read_bytes()).hexdigest()[:12]}…). Restore the run or train again."
        )


def _tool_parser(template: str) -> str:
    """vLLM reads tool calls with a parser for each family; empty for templates that know no tools."""
    if "<tool_call>" in template:
        return "hermes"
    return "llama3_json" if "<|python_tag|>" in template else ""
