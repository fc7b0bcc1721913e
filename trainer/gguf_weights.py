"""Compares a GGUF file with the merged weights that it was made from, tensor by tensor, without an engine.

Probes of the engine cannot see everything: one lost tensor among many layers leaves their answers as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.weights import read_tensors

ROWS = 256  # compared in each tensor, spread evenly
HEADS = {"attn_q.weight": "attention.head_count", "attn_k.weight": "attention.head_count_kv"}


@dataclass(frozen=True)
class GgufError:
    """worst: of all tensors the largest error, root mean square over that of the tensor, in units of what its stored
    type may have. carried: share of the fine-tune's change that is in the file, 0 for the base's weights, 1 for the
    tuned ones, with its standard error; None where nothing changed. unknown: tensors without counterpart in the file.
    """

    worst: float
    worst_tensor: str
    tensors: int
    unknown: int
    carried: float | None
    carried_error: float


def allowed_error(bits: float) -> float:
    """Largest relative error of a sound tensor that is stored with so many bits a weight."""
    return float(max(0.004, 3.0 * 2.0**-bits))


def compare_gguf(gguf: Path, base: Path, merged: Path) -> GgufError:
    """`base` and `merged` are folders with safetensors files."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    there = {tensor.name: tensor for tensor in reader.tensors}
    blocks = reader.fields[f"{architecture(reader)}.block_count"].contents()
    name_in_gguf, before = names_in_gguf(reader, blocks), dict(read_tensors(base))
    worst, worst_tensor, count, unknown, along, change, noise = 0.0, "", 0, 0, 0.0, 0.0, 0.0
    for name, read in read_tensors(merged):
        tensor = there.get(name_in_gguf(name))
        if tensor is None:
            unknown += 1
            continue
        count += 1
        error, _, rows, found = _closest(reader, tensor, read())
        error /= allowed_error(_bits(tensor.tensor_type))
        if not error <= worst:  # also when it is not a number
            worst, worst_tensor = error, tensor.name
        if rows is not None and found.ndim == 2 and name in before:
            old, new = _numbers(before[name](), rows), _numbers(read(), rows)
            along += float(((found - old) * (new - old)).sum())
            change += float(((new - old) ** 2).sum())
            noise += float((((found - new) * (new - old)) ** 2).sum())
    carried = round(along / change, 4) if change else None
    carried_error = round(noise**0.5 / change, 4) if change else 0.0
    return GgufError(round(worst, 4), worst_tensor, count, unknown, carried, carried_error)


def _closest(reader: Any, tensor: Any, whole: Any) -> tuple[float, Any, Any, Any]:
    """Error; the order in which the safetensors tensor's rows lie in the file (None where the shapes differ); the rows
    of that order that were compared; and those of the file.
    """
    import numpy as np
    from gguf import dequantize

    shape = [int(size) for size in reversed(tensor.shape)]
    is_vocabulary = tensor.name in ("token_embd.weight", "output.weight")  # the converter may leave padding out
    if shape[1:] != list(whole.shape[1:]) or (shape[0] != whole.shape[0] and not is_vocabulary):
        return float("inf"), None, None, None
    rows = np.linspace(0, shape[0] - 1, min(shape[0], ROWS)).astype(int)
    found = dequantize(tensor.data[rows], tensor.tensor_type).astype(np.float64)
    errors = []
    for order in _orders(reader, tensor.name, shape[0]):
        expected = _numbers(whole, order[rows])
        size = max(float(np.sqrt((expected**2).mean())), 1e-12)
        shifted = [found - expected, found - expected - 1] if found.ndim == 1 else [found - expected]
        errors.append((min(float(np.sqrt((d**2).mean())) / size for d in shifted), order))
    error, order = min(errors, key=lambda pair: pair[0])
    return error, order, order[rows], found


def stored_order(reader: Any, tensor: Any, whole: Any) -> Any:
    """Which row of `whole`, the tensor in safetensors, each row of the GGUF file is; None where the shapes differ."""
    return _closest(reader, tensor, whole)[1]


def _orders(reader: Any, name: str, rows: int) -> Iterator[Any]:
    """Row numbers as they are and, for queries and keys, with the rotary pairs next to each other (llama.cpp's way)."""
    import numpy as np

    yield np.arange(rows)
    key = next((key for suffix, key in HEADS.items() if name.endswith(suffix)), None)
    if key:
        heads = reader.fields[f"{architecture(reader)}.{key}"].contents()
        if isinstance(heads, int):
            yield paired_rows(rows, heads)


def paired_rows(rows: int, heads: int) -> Any:
    """Where llama.cpp's rows of queries and keys come from: it puts the two halves of each rotary pair side by side."""
    import numpy as np

    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _numbers(tensor: Any, rows: Any) -> Any:
    import numpy as np

    return tensor[rows].float().numpy().astype(np.float64)


def names_in_gguf(reader: Any, blocks: int) -> Callable[[str], str]:
    """From a tensor's name in safetensors to that in the file of a model with so many blocks."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture(reader))
    names = get_tensor_name_map(kind, blocks)
    return lambda name: names.get_name(name, (".weight", ".bias")) or ""


def architecture(reader: Any) -> str:
    """llama.cpp's name of the model's kind."""
    return str(reader.fields["general.architecture"].contents())


def _bits(kind: Any) -> float:
    from gguf import GGML_QUANT_SIZES

    weights, size = GGML_QUANT_SIZES[kind]
    return 8.0 * float(size) / float(weights)
