"""Makes GGUF files with llama.cpp's own tools: the converter in a child process, the quantizer in another.

A child, because llama.cpp ends the process at a file that it does not like. The tools are those of the llama.cpp folder
that TUNESHIP_LLAMACPP names, else of the one that was compiled here, else those of the environment's packages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from modelstore import UserError
from modelstore.machine import llamacpp_folder
from trainer.children import run
from trainer.failures import full_disk, is_full
from trainer.out_of_memory import child_ran_out

# llama.cpp's `enum llama_ftype`
FTYPES = {
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}
BITS = {"F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9}


class ExportError(Exception):
    """llama.cpp's converter or quantizer failed; the text ends with what it said."""


def refuse_unknown(quantizations: tuple[str, ...]) -> None:
    """Raise UserError for a quantization that llama.cpp does not have."""
    if unknown := [name for name in quantizations if name not in FTYPES]:
        raise UserError(f"export.quantizations has {unknown[0]!r}. llama.cpp has: {', '.join(FTYPES)}.")


def tool_version() -> dict[str, str]:
    """What the llama.cpp folder says of itself, for the manifest; nothing where the packages' tools are used."""
    folder = llamacpp_folder()
    if folder is None:
        return {}
    argv = [str(folder / "llama-server"), "--version"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(r"^version: (.+)$", said.stdout + said.stderr, re.MULTILINE)
    return {"llama.cpp": found[1].strip() if found else "unknown"}


def convert(model_folder: Path, gguf: Path, model_name: str, *, sparing: bool = False) -> None:
    """A model folder to a BF16 GGUF with the chat template embedded. Sparing memory, tensors wait on the disk."""
    script = _converter() / "convert_hf_to_gguf.py"
    if not script.exists():
        raise UserError(f"llama.cpp's converter is not at {script}. `make setup` installs it.")
    paths = [str(_converter()), str(_converter() / "gguf-py"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, str(script), str(model_folder), "--outtype", "bf16", "--model-name", model_name]
    run_tool([*argv, *(["--use-temp-file"] if sparing else []), "--outfile", str(gguf)], environment, gguf)


def _converter() -> Path:
    return llamacpp_folder() or Path(sys.prefix) / "converter"


def quantize(source: Path, target: Path, quantization: str, threads: int, matrix: Path | None = None) -> None:
    """A 16-bit GGUF to another type, with llama.cpp's own mixture of types per tensor.

    An importance `matrix` (trainer/importance.py) lies beside the target and needs a llama.cpp folder.
    """
    if folder := llamacpp_folder():
        importance = ["--imatrix", matrix.name] if matrix else []  # a name, because the file will quote it
        argv = [str(folder / "llama-quantize"), *importance, str(source.resolve()), str(target.resolve())]
    else:
        argv = [sys.executable, "-m", "trainer.gguf_files", str(source), str(target)]
    run_tool([*argv, quantization, str(threads)], child_environment(), target, target.parent if matrix else None)


def child_environment() -> dict[str, str]:
    """For a child that imports this package, wherever it was found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])}


def run_tool(argv: list[str], environment: dict[str, str], target: Path, folder: Path | None = None) -> None:
    """Run a program that makes `target`, in `folder` or here. Raises ExportError with the end of what it said, or
    MemoryError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    done = run(argv, cwd=folder, env=environment, stderr=subprocess.STDOUT)
    said = done.stdout
    if done.returncode or not target.exists():
        if is_full(target.parent, said):
            raise full_disk(target)
        if child_ran_out(done.returncode, said):
            raise MemoryError(f"{target.name} could not be made: {said.strip()[-300:] or 'the program was killed'}")
        raise ExportError(f"{target.name} could not be made (exit code {done.returncode}):\n{said[-1500:]}")


def _quantize_here(source: str, target: str, quantization: str, threads: str) -> None:
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize

    parameters = LlamaModelQuantizeParams()
    parameters.ftype = FTYPES[quantization]
    parameters.nthread = int(threads)
    if code := model_quantize(source, target, parameters):
        sys.exit(f"llama_model_quantize returned {code}")


if __name__ == "__main__":
    _quantize_here(*sys.argv[1:])
