"""Writes what will be served: adapter, merged 16-bit weights, GGUF files; and the same GGUF files of the base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelstore import ArtifactSpec, Base, Store
from trainer.gguf_files import BITS, convert, quantize
from trainer.machine import cpu_threads

Say = Callable[[str], None]


def needed_bytes(base: Base, quantizations: tuple[str, ...]) -> int:
    """Most disk that a run takes at once: merged, BF16 GGUF and quantizations of run and base, and checkpoints."""
    sixteen_bit = sum(
        a.bytes for a in base.manifest.artifacts if a.kind == "hf" and a.relative.endswith(".safetensors")
    )
    quantized = sum(BITS.get(name, 8.0) / 16 for name in quantizations)
    return int(sixteen_bit * (1 + 1 + 1 + 2 * quantized + 0.5)) + (64 << 20)


def export(
    model: Any, base: Base, store: Store, staging: Path, *, quantizations: tuple[str, ...], say: Say
) -> list[ArtifactSpec]:
    """Write all artifacts below `staging` and give the base the same quantizations.

    `model` is the trained PeftModel; merging changes it in place, so measure it before.
    """
    for name in ("adapter", "merged", "gguf"):
        shutil.rmtree(staging / name, ignore_errors=True)  # what an interrupted attempt left
    say("export: adapter and merged 16-bit weights")
    model.save_pretrained(staging / "adapter", safe_serialization=True)
    merge(model, base, staging / "merged")
    say(f"export: GGUF {', '.join(quantizations)}")
    specs = make_gguf(staging / "merged", staging / "gguf", "tuned", quantizations)
    _complete_base(base, store, quantizations, say)
    return [ArtifactSpec("adapter", "adapter"), ArtifactSpec("merged", "merged"), *specs]


def merge(model: Any, base: Base, folder: Path) -> None:
    """W + (alpha / r) B A in 16-bit safetensors, with the base's own tokenizer files and template."""
    import torch

    merged = model.merge_and_unload()
    if merged.dtype == torch.float32:
        merged = merged.to(torch.bfloat16)
    merged.config.use_cache = True
    merged.save_pretrained(folder, safe_serialization=True)
    for path in base.folder("hf").iterdir():
        if path.suffix != ".safetensors" and not (folder / path.name).exists() and "index" not in path.name:
            shutil.copyfile(path, folder / path.name)


def make_gguf(model_folder: Path, folder: Path, name: str, quantizations: tuple[str, ...]) -> list[ArtifactSpec]:
    """Convert once to BF16, quantize each from that. The BF16 file stays only when it was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    sixteen_bit = folder / f"{name}-BF16.gguf"
    convert(model_folder, sixteen_bit)
    for quantization in quantizations:
        if quantization != "BF16":
            quantize(sixteen_bit, folder / f"{name}-{quantization}.gguf", quantization, cpu_threads())
    if "BF16" not in quantizations:
        sixteen_bit.unlink()
    return [ArtifactSpec("gguf", f"{folder.name}/{name}-{each}.gguf", each) for each in quantizations]


def _complete_base(base: Base, store: Store, quantizations: tuple[str, ...], say: Say) -> None:
    there = {artifact.quantization for artifact in base.manifest.artifacts if artifact.kind == "gguf"}
    missing = tuple(name for name in quantizations if name not in there)
    if not missing:
        return
    say(f"export: GGUF {', '.join(missing)} of the base model, for a fair comparison")
    work = store.work(f"base-{base.id}")
    try:
        specs = make_gguf(base.folder("hf"), work / "gguf", "base", missing)
        store.add_to_base(base.id, {spec.path: work / spec.path for spec in specs}, specs)
    finally:
        shutil.rmtree(work, ignore_errors=True)
