"""Turns the GGUF file of a Llama-architecture model back into a 16-bit model folder: some base models come so.

The tokenizer is rebuilt from the file's own vocabulary and merges: the generic loader does not split digits, so its
token ids would differ from llama.cpp's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelstore import UserError

CONTROL_TOKEN, USER_TOKEN = 3, 4
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def import_gguf(gguf: Path, folder: Path) -> str:
    """Write config.json, model.safetensors (bf16) and the tokenizer to `folder`; returns the licence.

    Raises UserError for another architecture or vocabulary than Llama with byte-level BPE.
    """
    try:
        return _imported(gguf, _reader(gguf), folder)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        said = f"{type(error).__name__} {error}"
        raise UserError(f"{gguf} is damaged or no GGUF file of a whole model: {said}. Get it again.") from None


def _reader(path: Path) -> Any:
    """The library's reader, which at the end of the file goes on with nothing: a list that claims 2^40 elements would
    keep it busy for days.
    """
    from gguf import GGUFReader

    class BoundedReader(GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, *arguments: Any, **named: Any) -> Any:
            if int(offset) >= len(self.data):
                raise ValueError("the file ends before what its header promises")
            return super()._get(offset, *arguments, **named)

    return BoundedReader(path)


def _imported(gguf: Path, reader: Any, folder: Path) -> str:
    read = {name: field.contents for name, field in reader.fields.items()}
    kinds = (read["general.architecture"](), read["tokenizer.ggml.model"](), read["tokenizer.ggml.pre"]())
    if kinds != ("llama", "gpt2", "smollm"):
        raise UserError(
            f"{gguf.name} is of the kind {'/'.join(map(str, kinds))}; only llama/gpt2/smollm can be imported from "
            "GGUF. Name the model's safetensors instead (hub:REPO or a local folder)."
        )
    folder.mkdir(parents=True, exist_ok=True)
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    config = _config(read, tied)
    _write_weights(reader, config, folder)
    _write_tokenizer(read, folder)
    config.save_pretrained(folder)
    return str(read["general.license"]()) if "general.license" in read else "unknown"


def _config(read: dict[str, Any], tied: bool) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(read["tokenizer.ggml.tokens"]()),
        hidden_size=read["llama.embedding_length"](),
        intermediate_size=read["llama.feed_forward_length"](),
        num_hidden_layers=read["llama.block_count"](),
        num_attention_heads=read["llama.attention.head_count"](),
        num_key_value_heads=read["llama.attention.head_count_kv"](),
        max_position_embeddings=read["llama.context_length"](),
        rms_norm_eps=round(read["llama.attention.layer_norm_rms_epsilon"](), 12),
        rope_theta=read["llama.rope.freq_base"](),
        bos_token_id=read["tokenizer.ggml.bos_token_id"](),
        eos_token_id=read["tokenizer.ggml.eos_token_id"](),
        pad_token_id=read["tokenizer.ggml.padding_token_id"](),
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )


def _write_weights(reader: Any, config: Any, folder: Path) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    weights = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp stores the two halves of each rotary pair next to each other
            values = values.view(heads, -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)
        weights[name] = values.to(torch.bfloat16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        return f"model.layers.{layer}.{NAMES[part]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def _write_tokenizer(read: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokens, types = read["tokenizer.ggml.tokens"](), read["tokenizer.ggml.token_type"]()
    merges = [tuple(merge.split(" ")) for merge in read["tokenizer.ggml.merges"]()]
    tokenizer = Tokenizer(BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL_TOKEN, USER_TOKEN)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[read["tokenizer.ggml.bos_token_id"]()],
        eos_token=tokens[read["tokenizer.ggml.eos_token_id"]()],
        pad_token=tokens[read["tokenizer.ggml.padding_token_id"]()],
        unk_token=tokens[read["tokenizer.ggml.unknown_token_id"]()],
        chat_template=read["tokenizer.chat_template"](),
        model_max_length=read["llama.context_length"](),
    ).save_pretrained(folder)
