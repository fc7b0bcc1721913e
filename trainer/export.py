"""Writes what will be served: adapter, merged 16-bit weights, GGUF files; and the same GGUF files of the base."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from modelstore import ArtifactSpec, Base, Store, UserError
from modelstore.files import exclusive_lock
from modelstore.machine import cpu_threads
from trainer.children import end_children
from trainer.gguf_adapter import write_adapter
from trainer.gguf_files import BITS, convert, quantize
from trainer.importance import importance_matrix
from trainer.merge import merge_files, round_files
from trainer.out_of_memory import first_line, give_back, is_out_of_memory

SPARE_THREADS = 8  # from here on the base's files are made while the model trains
QUANTIZER_THREADS = 4  # that one quantizer makes good use of
SPARING = "with the processor alone, files in pieces and one at a time"

Say = Callable[[str], None]
Proven = TypeVar("Proven")


def needed_bytes(base: Base, quantizations: tuple[str, ...], full_checkpoints: int = 0) -> int:
    """Most disk that a run takes at once: merged, BF16 GGUF and quantizations of run and base, and checkpoints.

    A checkpoint of all weights is 12 bytes each (fp32 and two moments of AdamW); one more is there while one is
    written, and the finished weights at the end.
    """
    sixteen_bit = sum(
        a.bytes for a in base.manifest.artifacts if a.kind == "hf" and a.relative.endswith(".safetensors")
    )
    quantized = sum(BITS.get(name, 8.0) / 16 for name in quantizations)
    full = 6 * (full_checkpoints + 1) + 2 if full_checkpoints else 0
    return int(sixteen_bit * (1 + 1 + 1 + 2 * quantized + 0.5 + full)) + (64 << 20)


def export(
    base: Base,
    staging: Path,
    base_files: Callable[[bool], None],
    prove_merged: Callable[[], Proven],
    *,
    quantizations: tuple[str, ...],
    say: Say,
    trained: Path | None = None,
    calibration: str | None = None,
    adapter_gguf: bool = False,
) -> tuple[list[ArtifactSpec], Proven]:
    """Write all artifacts below `staging`, where adapter/ is, or from the `trained` weights; `base_files(sparing)`
    returns when the base has its own. With a `calibration` text the run's files are quantized by its importance matrix.
    Also returns what `prove_merged()` found about the merged weights; with processors to spare the GGUF files are made
    meanwhile.

    When memory runs out, everything once more, sparing it. Raises UserError when that is not enough.
    """

    def attempt(sparing: bool) -> tuple[list[ArtifactSpec], Proven]:
        if sparing:
            base_files(sparing)  # first, so that nothing else is at work
        specs, proven = _export(
            base, staging, prove_merged, quantizations, say, trained, calibration, adapter_gguf, sparing
        )
        if not sparing:
            base_files(sparing)
        return specs, proven

    try:
        return attempt(sparing=False)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say(f"out of memory at the export ({first_line(error)}); once more, {SPARING}")
    give_back()
    try:
        return attempt(sparing=True)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"Memory ran out at the export, also {SPARING}: {first_line(error)}. Nothing was published; the "
            "training is kept. End other programs, then start the same command again: it continues with the export."
        ) from error


def _export(
    base: Base,
    staging: Path,
    prove_merged: Callable[[], Proven],
    quantizations: tuple[str, ...],
    say: Say,
    trained: Path | None,
    calibration: str | None,
    adapter_gguf: bool,
    sparing: bool,
) -> tuple[list[ArtifactSpec], Proven]:
    for name in ("merged", "gguf"):
        shutil.rmtree(staging / name, ignore_errors=True)  # what an interrupted attempt left
    say("export: merged 16-bit weights")
    if trained:
        round_files(base.folder("hf"), trained, staging / "merged", sparing=sparing)
    else:
        merge_files(base.folder("hf"), staging / "adapter", staging / "merged", sparing=sparing)
    say(f"export: GGUF {', '.join(quantizations)}")

    def files() -> list[ArtifactSpec]:
        made = make_gguf(staging / "merged", staging / "gguf", "tuned", quantizations, base.id, calibration, sparing)
        say("export: GGUF files are written")
        return made

    with ThreadPoolExecutor(1) as pool:  # the work is done by child processes
        made = pool.submit(files)
        try:
            if sparing or cpu_threads() < SPARE_THREADS:
                made.result()
            proven = prove_merged()
        except BaseException:
            end_children()
            raise
    specs = made.result()
    adapter = [] if trained else [ArtifactSpec("adapter", "adapter")]
    if adapter_gguf:
        finest = max(specs, key=lambda spec: BITS.get(spec.quantization or "", 0.0))
        write_adapter(staging / "adapter", staging / "merged", staging / finest.path, staging / "gguf" / "adapter.gguf")
        adapter.append(ArtifactSpec("adapter-gguf", "gguf/adapter.gguf"))
    return [*adapter, ArtifactSpec("merged", "merged"), *specs], proven


def make_gguf(
    model_folder: Path,
    folder: Path,
    name: str,
    quantizations: tuple[str, ...],
    base_id: str,
    calibration: str | None = None,
    sparing: bool = False,
) -> list[ArtifactSpec]:
    """Convert once to BF16, quantize each from that, several at a time unless memory is to be spared. The BF16 file
    stays only when it was asked for.

    The base's id becomes the model's name in the file: llama.cpp tells Phi-3's tokenizer by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sixteen_bit = folder / f"{name}-BF16.gguf"
    convert(model_folder, sixteen_bit, base_id, sparing=sparing)
    wanted = [each for each in quantizations if each != "BF16"]
    at_once = 1 if sparing else max(1, min(len(wanted), cpu_threads() // QUANTIZER_THREADS))
    threads = 1 if sparing else max(1, cpu_threads() // at_once)
    matrix = importance_matrix(sixteen_bit, calibration, sparing) if calibration and wanted else None
    targets = [folder / f"{name}-{each}.gguf" for each in wanted]
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda target, each: quantize(sixteen_bit, target, each, threads, matrix), targets, wanted))
    if matrix:
        matrix.unlink()
    if "BF16" not in quantizations:
        sixteen_bit.unlink()
    return [ArtifactSpec("gguf", f"{folder.name}/{name}-{each}.gguf", each) for each in quantizations]


@contextmanager
def base_files(base: Base, store: Store, quantizations: tuple[str, ...], say: Say) -> Iterator[Callable[[bool], None]]:
    """The same GGUF files of the base model, for a fair comparison. Yields a function that returns when they are there
    and takes whether memory is to be spared.

    With processors to spare they are made while the model trains; leaving the block early ends that work.
    """
    missing = _missing(base, quantizations)
    if not missing:
        yield lambda sparing: None
    elif cpu_threads() < SPARE_THREADS:
        yield lambda sparing: _make_base_files(base, store, missing, say, sparing)
    else:
        with ThreadPoolExecutor(1, initializer=_stand_back) as pool:  # the work is done by child processes
            made = pool.submit(_make_base_files, base, store, missing, say)

            def wait(sparing: bool) -> None:
                if sparing and made.exception():  # it ended for want of memory, or will say again what is wrong
                    _make_base_files(base, store, missing, say, sparing)
                else:
                    made.result()

            try:
                yield wait
            except BaseException:
                end_children()
                raise


def _missing(base: Base, quantizations: tuple[str, ...]) -> tuple[str, ...]:
    there = {artifact.quantization for artifact in base.manifest.artifacts if artifact.kind == "gguf"}
    return tuple(name for name in quantizations if name not in there)


def _stand_back() -> None:
    """Child processes of this thread yield to the training."""
    if sys.platform == "linux":  # where priorities are those of threads
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _make_base_files(base: Base, store: Store, missing: tuple[str, ...], say: Say, sparing: bool = False) -> None:
    work = store.work(f"base-{base.id}")
    with exclusive_lock(work.with_name(f"{work.name}.lock"), waits=True):  # another run of this base may be at it
        missing = _missing(store.base(base.id), missing)
        if not missing:
            return
        say(f"export: GGUF {', '.join(missing)} of the base model")
        try:
            specs = make_gguf(base.folder("hf"), work / "gguf", "base", missing, base.id, sparing=sparing)
            store.add_to_base(base.id, {spec.path: work / spec.path for spec in specs}, specs)
        finally:
            shutil.rmtree(work, ignore_errors=True)
