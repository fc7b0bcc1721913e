"""Publishes a model folder as a base and, without training, as a run: a store to measure serving on.

usage: python -m benchmarks.untrained_store MODEL STORE [--quantizations BF16,Q8_0] [--threads N]

Run and base are the same weights, as 16-bit weights for vLLM and as GGUF; there is no adapter. MODEL is a folder such
as benchmarks.phi3_random writes; on the same disk as STORE its files are linked, not copied. In the trainer's
environment.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from modelstore import ArtifactSpec, Store
from modelstore.machine import cpu_threads
from trainer.gguf_files import convert, quantize

RUN_ID = "20261127-1800-untrained-0001"


def publish(model: Path, store: Store, quantizations: list[str], threads: int) -> None:
    """The base has the folder's name."""
    store.create()
    base = {"base": {"id": model.name}}
    with tempfile.TemporaryDirectory(dir=store.path / "work") as folder:
        ggufs = {quantization: Path(folder) / f"{quantization}.gguf" for quantization in ["BF16", *quantizations]}
        convert(model, ggufs["BF16"], model.name)
        for quantization in ggufs.keys() - {"BF16"}:
            quantize(ggufs["BF16"], ggufs[quantization], quantization, threads)
        wanted = {quantization: ggufs[quantization] for quantization in quantizations}
        with store.stage_base(model.name) as staging:
            staging.publish(base, _filled(staging.path, model, "hf", wanted))
        with store.stage(RUN_ID) as staging:
            serve = {"serve": {"quantization": quantizations[0]}}
            staging.publish(base | serve, _filled(staging.path, model, "merged", wanted))
    store.promote(RUN_ID)


def _filled(folder: Path, model: Path, weights: str, ggufs: dict[str, Path]) -> list[ArtifactSpec]:
    """What lies in the folder of a run or base now."""
    for name in (weights, "gguf"):
        (folder / name).mkdir()
    for path in filter(Path.is_file, model.iterdir()):
        _link(path, folder / weights / path.name)
    for path in ggufs.values():
        _link(path, folder / "gguf" / path.name)
    files = [ArtifactSpec("gguf", f"gguf/{path.name}", quantization) for quantization, path in ggufs.items()]
    return [ArtifactSpec(weights, weights), *files]


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another disk
        shutil.copyfile(path, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--quantizations", default="BF16,Q8_0", help="the first is what the run is served with")
    parser.add_argument("--threads", type=int, default=cpu_threads())
    wish = parser.parse_args()
    publish(wish.model.resolve(), Store(wish.store), wish.quantizations.split(","), wish.threads)
    print(f"{RUN_ID} is current in {wish.store}")


if __name__ == "__main__":
    main()
