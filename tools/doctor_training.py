"""The checks of the doctor that concern one training: its base, its plan, the GPU's compiler and 4-bit arithmetic.

Standard library only; what needs the trainer's environment is asked of it as a program.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doctor_machine import FAILURE, OK, ROOT, WARNING, Finding

HUB = "https://huggingface.co"
PLAN_TIMEOUT_S, PROBE_TIMEOUT_S, HUB_TIMEOUT_S = 180, 300, 8
GIB = 1 << 30


def base(config: Path, store: Path) -> Finding:
    """Whether the config's base model is here, or can be fetched."""
    try:
        spec = str(tomllib.loads(config.read_text(encoding="utf-8"))["model"]["base"])
    except (OSError, ValueError, KeyError) as error:
        return Finding(
            "base model", FAILURE, f"{config} names none: {error}", "python -m trainer plan CONFIG says more"
        )
    if _in_store(spec, store):
        return Finding("base model", OK, f"{spec} is in the store")
    kind, _, name = spec.partition(":")
    sources = {"package": _package, "hub": _hub, "modelscope": _modelscope}
    return sources[kind](name) if kind in sources else _folder(spec)


def _modelscope(name: str) -> Finding:
    return Finding("base model", WARNING, f"modelscope:{name}: whether it can be fetched was not tried")


def _folder(spec: str) -> Finding:
    if (Path(spec) / "config.json").exists():
        return Finding("base model", OK, f"{spec} is a folder on this machine")
    return Finding("base model", FAILURE, f"{spec} is no folder with a config.json", "correct model.base")


def _in_store(spec: str, store: Path) -> bool:
    wanted = spec.partition("@")[0]
    for manifest in (store / "bases").glob("*/manifest.json"):
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))["base"]["repository"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if found == wanted:
            return True
    return False


def _package(name: str) -> Finding:
    wanted = name.lower().replace("-", "_")
    packages = (ROOT / ".venv" / "trainer").glob("lib/python*/site-packages/*.dist-info")
    if any(path.name.lower().startswith(f"{wanted}-") for path in packages):
        return Finding("base model", OK, f"the package {name} is installed")
    return Finding("base model", WARNING, f"the package {name} is not installed", "make setup")


def _hub(name: str) -> Finding:
    """A complete copy in the cache, or a hub that answers for this model."""
    repository, _, revision = name.partition("@")
    if _cached(repository, revision):
        return Finding("base model", OK, f"{repository} is complete in the hub's cache")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        seen = f"HF_HUB_OFFLINE is set and {repository} is not in the cache"
        return Finding("base model", FAILURE, seen, "unset HF_HUB_OFFLINE, or copy the model here and name its folder")
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        return Finding("base model", FAILURE, f"HF_ENDPOINT={endpoint} is no address", "HF_ENDPOINT=https://…")
    request = urllib.request.Request(f"{endpoint}/api/models/{repository}")
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            return Finding("base model", OK, f"{endpoint} answers for {repository}")
    except urllib.error.HTTPError as error:
        remedy = "check the name, accept the model's licence there, and set HF_TOKEN"
        return Finding("base model", FAILURE, f"{endpoint} answers {error.code} for {repository}", remedy)
    except OSError as error:
        reason = getattr(error, "reason", error)
        remedy = "set HF_ENDPOINT to a mirror, take modelscope:REPO, or name a folder with the model"
        return Finding("base model", FAILURE, f"{endpoint} does not answer ({reason})", remedy)


def _cached(repository: str, revision: str) -> bool:
    """Every file that the weights' index names, and a config.json, in one snapshot."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{repository.replace('/', '--')}"
    named = cache / "refs" / (revision or "main")
    snapshots = [named.read_text().strip()] if named.is_file() else ([revision] if revision else [])
    return any(_complete(cache / "snapshots" / name) for name in snapshots)


def _complete(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    try:
        files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).exists() for name in (*files, "config.json"))


def plan(config: Path, store: Path) -> Iterator[Finding]:
    """Memory and disk of the config's training against what is free."""
    python = _trainer_python()
    if not python:
        yield Finding("plan", WARNING, "not made: the trainer's environment is not there yet", "make setup")
        return
    argv = [python, "-m", "trainer", "plan", str(config.resolve()), "--store", str(store.resolve()), "--json"]
    made = _asked(argv, PLAN_TIMEOUT_S)
    if isinstance(made, str):
        yield Finding("plan", WARNING, f"not made: {made}")
        return
    kind = "GPU memory" if made["device"] == "cuda" else "memory"
    peak, limit = made["peak_bytes"], made["limit_bytes"]
    seen = f"{config.name}: {peak / GIB:.2f} GiB of {kind} at the peak"
    if limit is None:
        yield Finding("plan: memory", WARNING, f"{seen}, and no GPU is here", "take a config for a processor")
    elif made["fits"]:
        yield Finding("plan: memory", OK, f"{seen}, {limit / GIB:.2f} GiB free")
    elif fitted := made.get("proposal"):  # training.plan = "fastest"
        least = f"{config.name}: {fitted['peak_bytes'] / GIB:.2f} GiB of {kind} for the plan that fits"
        yield Finding("plan: memory", OK, f"{least}, {limit / GIB:.2f} GiB free")
    else:
        remedy = f"python -m trainer plan {config} --fit {limit >> 20}MiB"
        yield Finding("plan: memory", WARNING, f"{seen}, and {limit / GIB:.2f} GiB are free", remedy)
    yield _disk(made["disk_bytes"], config, store)


def _disk(needed: int, config: Path, store: Path) -> Finding:
    there = next(folder for folder in (store, *store.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    seen = f"{config.name}: {needed / GIB:.1f} GiB at the peak, {free / GIB:.1f} GiB free at {there}"
    if needed <= free:
        return Finding("plan: disk", OK, seen)
    return Finding("plan: disk", FAILURE, seen, "make prune, or STORE=… on another disk")


def accelerator() -> Iterator[Finding]:
    """A Triton kernel that is compiled and run, and weights through 4 bits and back, in the trainer's environment."""
    names = {"triton": "Triton kernel", "four_bits": "4-bit round trip"}
    if not shutil.which("nvidia-smi"):
        yield from (Finding(title, OK, "skipped: no NVIDIA GPU is here") for title in names.values())
        return
    if not (python := _trainer_python()):
        yield Finding("Triton kernel", WARNING, "not run: the trainer's environment is not there yet", "make setup")
        return
    found = _asked([python, "-m", "trainer.accelerator_probe"], PROBE_TIMEOUT_S)
    if isinstance(found, str):
        yield Finding("Triton kernel", FAILURE, found, "rm -r .venv/trainer && make setup")
        return
    for key, title in names.items():
        problem = found[key]["problem"]
        remedy = found[key]["remedy"] if problem else ""
        yield Finding(title, FAILURE if problem else OK, problem or found[key]["seen"], remedy)


def _trainer_python() -> str:
    python = ROOT / ".venv" / "trainer" / "bin" / "python"
    return str(python) if python.exists() else ""


def _asked(argv: list[str], timeout_s: int) -> dict[str, Any] | str:
    """The JSON document that the program wrote, or why there is none."""
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s)
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s} s"
    except ValueError:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].removeprefix("error: ")
    return found if isinstance(found, dict) else "an answer of an unknown form"
