"""Reads what sizing needs from the head of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from modelstore import UserError

KV_CACHE_BYTES = 2  # f16, llama.cpp's default for keys and values
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_STRING_BYTES, _MAX_ENTRIES = 1 << 24, 1 << 16


@dataclass(frozen=True)
class ModelShape:
    """The longest context that the model was trained for, and what one token of it costs in the KV cache."""

    context_tokens: int
    kv_bytes_per_token: int


def read_shape(path: Path) -> ModelShape:
    """UserError if the file is no GGUF or does not say how long its context is."""
    try:
        with path.open("rb") as file:
            fields = _fields(file)
        architecture = fields["general.architecture"]
        own = {key.removeprefix(f"{architecture}."): value for key, value in fields.items()}
        return ModelShape(int(own["context_length"]), _kv_bytes_per_token(own))
    except (struct.error, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path} is not a GGUF file that can be served ({type(error).__name__}: {error}).") from None


def _kv_bytes_per_token(own: dict[str, Any]) -> int:
    layers, heads = int(own["block_count"]), own.get("attention.head_count", 1)
    heads_kv = own.get("attention.head_count_kv", heads)
    total_heads_kv = sum(heads_kv) if isinstance(heads_kv, list) else layers * int(heads_kv)
    default_length = int(own["embedding_length"]) // max(heads if isinstance(heads, list) else [heads])
    lengths = own.get("attention.key_length", default_length) + own.get("attention.value_length", default_length)
    return int(total_heads_kv * lengths * KV_CACHE_BYTES)


def _fields(file: BinaryIO) -> dict[str, Any]:
    """Entries up to the tokenizer, which writers put last and which would take a second to walk through."""
    magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version < 2 or count > _MAX_ENTRIES:
        raise ValueError("no GGUF header of version 2 or later")
    fields: dict[str, Any] = {}
    for _ in range(count):
        key = _string(file)
        if key.startswith("tokenizer."):
            break
        fields[key] = _value(file, _scalar(file, "I"))
    return fields


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        item, length = _scalar(file, "I"), _scalar(file, "Q")
        if length > _MAX_ENTRIES:
            raise ValueError("an implausibly long list")
        return [_value(file, item) for _ in range(length)]
    return _scalar(file, _SCALARS[kind])


def _scalar(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


def _string(file: BinaryIO) -> str:
    length = _scalar(file, "Q")
    if length > _MAX_STRING_BYTES:
        raise ValueError("an implausibly long text")
    return file.read(length).decode("utf-8", "replace")
