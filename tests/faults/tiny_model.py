"""A Llama of one layer and 350 tokens with random weights, which every program of the pipeline takes for a real model.

Its vocabulary is one of characters with byte fallback, so that converting it takes no time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ("<|im_start|>", "<|im_end|>")
PIECES = ("<unk>", "▁", *map(chr, range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256)))
ANSWERS = {"Key?": "X-Key.", "Days?": "9 days.", "Who?": "Reyes.", "Where?": "Oslo."}


def write_model(folder: Path, **shape: Any) -> Path:
    """`shape` replaces settings of the model, such as hidden_size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    _write_tokenizer(folder)
    torch.manual_seed(1)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    tokens = {"bos_token_id": len(PIECES), "eos_token_id": len(PIECES) + 1, "pad_token_id": len(PIECES) + 1}
    settings = {"num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": len(PIECES) + len(CONTROL)}
    model = LlamaForCausalLM(LlamaConfig(**{**small, **tokens, **settings, **shape}))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_data(path: Path) -> Path:
    """Four questions and answers."""
    rows = [{"question": q, "answer": a} for q, a in ANSWERS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(base: Path, data: Path, **training: Any) -> dict[str, Any]:
    """A whole training of this model, as a tree for TrainConfig."""
    steps = {"max_steps": 8, "learning_rate": 1e-2, "warmup_steps": 2, "logging_steps": 1, "save_steps": 2}
    return {
        "name": "tiny",
        "model": {"base": str(base), "max_length_tokens": 96},
        "data": {"path": str(data)},
        "lora": {"r": 8},
        "training": {**steps, "batch_size": 2, **training},
        "export": {"quantizations": ["Q8_0"]},
    }


def toml(tree: dict[str, Any]) -> str:
    """A config file of such a tree."""
    top = [f"{key} = {json.dumps(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for section, values in tree.items():
        if isinstance(values, dict):
            top += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(top) + "\n"


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: number for number, piece in enumerate(PIECES)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    start, end = CONTROL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=start, eos_token=end, pad_token=end, unk_token="<unk>", add_bos_token=False
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    _write_sentencepiece(folder / "tokenizer.model")


def _write_sentencepiece(path: Path) -> None:
    """The same vocabulary in the form that llama.cpp's converter reads."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    kinds = proto.ModelProto.SentencePiece
    model = proto.ModelProto()
    for piece in PIECES + CONTROL:
        kind = kinds.UNKNOWN if piece == "<unk>" else kinds.BYTE if piece.startswith("<0x") else kinds.NORMAL
        kind = kinds.CONTROL if piece in CONTROL else kind
        model.pieces.add(piece=piece, score=0.0, type=kind)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = 0
    model.trainer_spec.bos_id = model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString())
