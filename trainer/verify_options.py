"""Proves what the options of [export] add: the adapter as a GGUF, and quantization by an importance matrix."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelstore import ArtifactSpec, Base, Check
from trainer.agreement import compare_listed
from trainer.config import ExportConfig
from trainer.gguf_adapter import compare_adapter
from trainer.gguf_files import BITS
from trainer.verify import (
    EIGHT_BITS_AND_MORE,
    FEWER_BITS,
    Reference,
    agreement,
    ask_engine,
    does_not_load,
    greedy_ids,
)


def verify_options(
    folder: Path,
    base: Base,
    artifacts: Sequence[ArtifactSpec],
    tokenizer: Any,
    reference: Reference,
    export: ExportConfig,
    say: Callable[[str], None],
) -> list[Check]:
    """The checks of the options that are on. `base` has its GGUF files."""
    checks = []
    if export.importance_matrix:
        quantized = [spec for spec in artifacts if spec.kind == "gguf" and spec.quantization != "BF16"]
        checks += [_uses_matrix(folder / spec.path) for spec in quantized]
    if export.adapter_gguf:
        adapter = folder / next(spec.path for spec in artifacts if spec.kind == "adapter-gguf")
        say(f"verify: {adapter.relative_to(folder)} in llama.cpp")
        finest = max(export.quantizations, key=lambda name: BITS.get(name, 0.0))
        checks.append(_holds_adapter(adapter, folder / "adapter", base.folder("hf")))
        checks.append(_answers(base.artifact("gguf", finest).path, finest, adapter, tokenizer, reference))
    return checks


def _uses_matrix(gguf: Path) -> Check:
    """llama-quantize writes into the file how many tensors of the matrix it had, and of how many chunks of text."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    found = {name: fields.get(f"quantize.imatrix.{name}_count") for name in ("entries", "chunks")}
    figures: dict[str, float | int | str] = {
        name: int(field.contents()) if field else 0 for name, field in found.items()
    }
    passed = all(figures.values())
    return Check(f"{gguf.name} was quantized by the importance matrix", passed, figures, "entries > 0, chunks > 0")


def _holds_adapter(gguf: Path, adapter: Path, base: Path) -> Check:
    name, limit = f"{gguf.name} holds the adapter", "every A and B equal, alpha the same"
    try:
        found = compare_adapter(gguf, adapter, base)
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        return Check(name, False, {"error": repr(error)[:300]}, limit)
    figures: dict[str, float | int | str] = {"tensors": found.tensors, "different": len(found.different)}
    figures |= {"alpha": found.alpha, "wanted_alpha": found.wanted_alpha}
    if found.different:
        figures["where"] = ", ".join(found.different[:5])
    return Check(name, not found.different and found.alpha == found.wanted_alpha, figures, limit)


def _answers(base: Path, quantization: str, adapter: Path, tokenizer: Any, reference: Reference) -> Check:
    """The base's file with the adapter's on top, against the model as it was trained."""
    try:
        found = ask_engine(base, reference.probes, adapter)
    except (subprocess.CalledProcessError, ValueError) as error:
        return does_not_load(adapter, error)
    measured = compare_listed(reference.tuned.logprobs, found["positions"], reference.answers)
    few_bits = reference.four_bits or BITS.get(quantization, 0.0) < BITS["Q8_0"]
    limits = FEWER_BITS if few_bits else EIGHT_BITS_AND_MORE
    return agreement(f"{base.name} + {adapter.name}", measured, limits, reference, greedy_ids(found, tokenizer))
