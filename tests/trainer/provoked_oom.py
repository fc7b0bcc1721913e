"""Trains a small model on a CPU whose address space is cut so that the first plan's logits do not fit; prints JSON.

usage: provoked_oom.py FOLDER
"""

from __future__ import annotations

import json
import random
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from trainer.cli import prepare_process

prepare_process()
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from trainer.backends import choose_backend  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.finetune import Finetuned, finetune  # noqa: E402
from trainer.plan_check import check, train_within_memory  # noqa: E402
from trainer.prepare import Prepared  # noqa: E402
from trainer.render import Example  # noqa: E402

VOCABULARY, LENGTH = 50_000, 96
ROOM_BYTES = 1050 << 20  # libraries take 0.36 GiB of it; the logits of 16 rows need 1.1 GiB, those of 8 rows 0.57


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="b", eos_token="b", unk_token="a")


def cut_address_space() -> None:
    status = Path("/proc/self/status").read_text()
    used = int(status.partition("VmSize:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, -1))


def main() -> None:
    folder = Path(sys.argv[1])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=VOCABULARY, tie_word_embeddings=True))
    model.to(torch.float32).save_pretrained(folder / "hf")
    config = TrainConfig.model_validate(
        {
            "name": "oom",
            "model": {"base": str(folder / "hf"), "weights": "fp32", "max_length_tokens": LENGTH},
            "data": {"path": "rows"},
            "lora": {"r": 4, "alpha": 4},
            "training": {"max_steps": 1, "batch_size": 16, "backend": "transformers", "logging_steps": 1},
        }
    )
    base: Any = SimpleNamespace(folder=lambda kind: folder / kind, path=folder)
    backend, _ = choose_backend(config, folder)
    rng = random.Random(1)
    rows = [Example([rng.randrange(VOCABULARY) for _ in range(LENGTH)], [1] * LENGTH) for _ in range(32)]
    prepared = Prepared(train=rows, held_out=[], prompts=[], report=None)  # type: ignore[arg-type]
    attempts: list[tuple[int, int, str]] = []

    def attempt(plan: TrainConfig) -> Finetuned:
        training = plan.training
        attempts.append((training.batch_size, training.gradient_accumulation_steps, training.gradient_checkpointing))
        nothing: Any = lambda *_: None  # noqa: E731
        stop: Any = lambda: False  # noqa: E731
        return finetune(
            plan, backend, base, tokenizer(), prepared, work=folder / "work", on_step=nothing, should_stop=stop
        )

    (folder / "work").mkdir()
    planned = check(config, backend.name, base, rows, lambda text: print(text, file=sys.stderr), ignore=True)
    import trl  # noqa: F401  loaded before the limit is set

    cut_address_space()
    say: Any = lambda text: print(text, file=sys.stderr)  # noqa: E731
    tuned = train_within_memory(config, planned, folder / "work", say, attempt)
    print(json.dumps({"attempts": attempts, "steps": tuned.summary.steps, "manifest": planned.for_manifest()}))


if __name__ == "__main__":
    main()
