"""An adapter as a GGUF, for llama.cpp's `--lora`: writes it, and compares it with the PEFT adapter, every A, every B
and the scale.

Names are those of the gguf package; rows lie in the order of the model's own file, which llama.cpp's converter made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.gguf_files import ExportError
from trainer.gguf_weights import architecture, names_in_gguf, paired_rows, stored_order
from trainer.weights import read_adapter, read_tensors

HEADS = {"attn_q.weight": "num_attention_heads", "attn_k.weight": "num_key_value_heads"}


@dataclass(frozen=True)
class AdapterError:
    """different: the tensors whose values, or whose presence, are not the adapter's. alpha, wanted_alpha: the scale's
    numerator in the file and in the adapter.
    """

    tensors: int
    different: tuple[str, ...]
    alpha: float
    wanted_alpha: float


def write_adapter(adapter: Path, merged: Path, model: Path, target: Path) -> None:
    """A PEFT adapter as the GGUF `target`, its A and B in 32 bits. `merged` is the folder that the GGUF `model` was
    made from. Raises ExportError for an adapted layer that the model's file does not have under one name.
    """
    from gguf import GGUFReader, GGUFType, GGUFWriter, Keys

    reader, pairs, weights = GGUFReader(model), read_adapter(adapter)[0], dict(read_tensors(merged))
    there = {tensor.name: tensor for tensor in reader.tensors}
    blocks = reader.fields[f"{architecture(reader)}.block_count"].contents()
    name_in_gguf = names_in_gguf(reader, blocks)
    writer = GGUFWriter(target, architecture(reader))
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, _alpha(adapter))
    for module, pair in sorted(pairs.items()):
        name = name_in_gguf(f"{module}.weight")
        rows = stored_order(reader, there[name], weights[f"{module}.weight"]()) if name in there else None
        if rows is None:
            raise ExportError(
                f"the adapted layer {module} is not in {model.name} as it is, so no GGUF can be made of the adapter."
            )
        writer.add_tensor(f"{name}.lora_a", pair["A"].float().numpy())
        writer.add_tensor(f"{name}.lora_b", pair["B"].float().numpy()[rows])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _alpha(adapter: Path) -> float:
    return float(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"])


def compare_adapter(gguf: Path, adapter: Path, base: Path) -> AdapterError:
    """Values must be equal, not close: the file holds them in 32 bits. `base` is the base model's folder."""
    from gguf import GGUFReader, dequantize

    reader, pairs = GGUFReader(gguf), read_adapter(adapter)[0]
    model = json.loads((base / "config.json").read_text(encoding="utf-8"))
    name_in_gguf = names_in_gguf(reader, model["num_hidden_layers"])
    wanted: dict[str, list[Any]] = {}
    for module, pair in pairs.items():
        name = name_in_gguf(f"{module}.weight") or module
        wanted[f"{name}.lora_a"] = [pair["A"].float().numpy()]
        wanted[f"{name}.lora_b"] = _orders(name, pair["B"].float().numpy(), model)
    there = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    different = [name for name in wanted if name not in there or not _equals_one(there[name], wanted[name])]
    different += [name for name in there if name not in wanted]
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    return AdapterError(len(there), tuple(sorted(different)), alpha, _alpha(adapter))


def _orders(name: str, b: Any, model: dict[str, Any]) -> list[Any]:
    """B as it is and, for queries and keys, with its rows in llama.cpp's order."""
    key = next((key for suffix, key in HEADS.items() if name.endswith(suffix)), None)
    heads = model.get(key, model["num_attention_heads"]) if key else None
    return [b, b[paired_rows(len(b), heads)]] if heads else [b]


def _equals_one(found: Any, candidates: list[Any]) -> bool:
    import numpy as np

    return any(np.array_equal(found, each) for each in candidates)
