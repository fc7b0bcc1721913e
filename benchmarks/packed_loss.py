"""Does packing change what is learned? The mean loss of a token over the same rows, padded, padding-free and packed.

usage: python -m benchmarks.packed_loss --model FOLDER --out RESULT.json [--rows 128] [--variants NAME,…]

The model is not trained: its adapter is new and changes nothing. Rows are those of benchmarks/train_gpu.py with lengths
of a chat; variants are its too. Wants a model with real weights, since random ones find every token equally likely.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.train_gpu import about, kit_config, make_rows

LENGTH = 2048


def token_loss(variant: str, model: str, count: int, folder: Path) -> dict[str, Any]:
    """Mean loss and number of predicted tokens."""
    import torch
    from transformers import AutoTokenizer

    from modelstore import Store
    from trainer.backends import choose_backend
    from trainer.bases import resolve_base
    from trainer.prepare import Prepared
    from trainer.render import Example

    config, store = kit_config(model, variant, 1, LENGTH), Store(folder / "store")
    store.create()
    backend, _ = choose_backend(config, store.cache)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = make_rows(tokenizer, count, LENGTH, "chat")
    examples = [Example(ids, [1] * len(ids)) for ids in rows]
    prepared = Prepared(train=examples, held_out=[], prompts=[], report=None)  # type: ignore[arg-type]
    trainer = backend.trl_trainer(config, resolve_base(model, store), tokenizer, prepared, folder / variant)
    trainer.model.eval()
    summed, tokens = 0.0, 0
    for batch in trainer.get_train_dataloader():
        labels = batch["labels"]
        found = int((labels[:, 1:] != -100).sum())
        loss, _, _ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
        summed, tokens = summed + float(loss.detach().float()) * found, tokens + found
        assert torch.isfinite(loss)
    return {
        "variant": variant,
        "tokens": tokens,
        "expected_tokens": sum(map(len, rows)) - len(rows),
        "loss": round(summed / tokens, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--variants", default="16bit-padded,16bit-padding-free,16bit-packed")
    wish = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in wish.variants.split(","):
            try:
                results.append(token_loss(variant, wish.model, wish.rows, Path(folder)))
            except Exception as error:  # the others are measured all the same
                results.append({"variant": variant, "error": f"{type(error).__name__}: {error}"[-1500:]})
            print(results[-1], flush=True)
    wish.out.write_text(json.dumps({**about("packed_loss"), "rows": wish.rows, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
