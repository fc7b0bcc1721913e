"""The importance matrix of a quantization: how strongly the training rows drive each column of each weight matrix.

llama.cpp's own llama-imatrix computes it, and its quantizer then rounds the columns that matter with less error. No
package brings that program, so a llama.cpp folder has to be made or named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelstore import UserError
from modelstore.machine import cpu_threads, llamacpp_folder
from trainer.gguf_files import child_environment, run_tool
from trainer.machine import compute_device
from trainer.render import Example

CHUNK_TOKENS = 512  # that llama-imatrix reads at once
MOST_CHUNKS = 100  # 51,200 tokens; docs/verification.md has what they gave
LEAST_CHUNKS = 3  # it refuses fewer than two


def imatrix_program() -> Path:
    """llama-imatrix of the llama.cpp folder that was made or named. Raises UserError where there is none."""
    folder = llamacpp_folder()
    if folder and (program := folder / "llama-imatrix").exists():
        return program
    where = f"{folder} lacks it" if folder else "no package brings it"
    raise UserError(
        f"export.importance_matrix needs llama.cpp's program llama-imatrix, and {where}. `make llamacpp` compiles it; "
        "TUNESHIP_LLAMACPP names a llama.cpp folder that has it. Or remove the option."
    )


def calibration_text(examples: Sequence[Example], tokenizer: Any) -> str:
    """Rows with their chat template, spread evenly over the data: at most as many tokens as are read, and so often
    again as llama-imatrix needs.
    """
    tokens = sum(len(example.input_ids) for example in examples)
    step = max(1, -(-tokens // (MOST_CHUNKS * CHUNK_TOKENS)))
    text = "\n".join(tokenizer.decode(example.input_ids, skip_special_tokens=False) for example in examples[::step])
    return "\n".join([text] * max(1, -(-LEAST_CHUNKS * CHUNK_TOKENS // tokens)))


def importance_matrix(sixteen_bit: Path, calibration: str, sparing: bool = False) -> Path:
    """The matrix of a BF16 GGUF over the text, as a file beside it; `sparing` the card's memory, on the processor."""
    matrix, text = sixteen_bit.with_name("importance-matrix.gguf"), sixteen_bit.with_name("training-rows.txt")
    text.write_text(calibration, encoding="utf-8")
    layers = "999" if compute_device() == "cuda" and not sparing else "0"
    argv = [str(imatrix_program()), "--model", sixteen_bit.name, "--file", text.name, "--output-file", matrix.name]
    argv += ["--parse-special", "--ctx-size", str(CHUNK_TOKENS), "--chunks", str(MOST_CHUNKS), "--no-ppl"]
    argv += ["--threads", str(cpu_threads()), "--n-gpu-layers", layers]
    run_tool(argv, child_environment(), matrix.resolve(), sixteen_bit.parent)
    text.unlink()
    return matrix
