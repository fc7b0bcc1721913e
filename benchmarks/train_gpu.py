"""Measures fine-tuning on one GPU: the kit's backends and plans against the plain stack, on the same rows.

usage: python -m benchmarks.train_gpu --model FOLDER --out RESULT.json [--variants plain,recipe,…] [--steps 15]
       [--rows full|chat] [--length 2048] [--data FILE.jsonl] [--profile]

Every variant runs in a process of its own. `plain` is what a user would write: transformers, bitsandbytes, peft and
trl with their defaults, the model prepared as peft's guide has it, which makes norms, embeddings and with them the
residual stream 32 bits wide. `plain-bf16` leaves them at 16, as the kit does. All others go through the kit's own
finetune(). Rows are random words, the same for all; `full` rows fill the length, `chat` rows are log-normal with a
median of 300 tokens. tokens_per_s counts no padding. Variants that begin with `two` train on two GPUs; their peak
memory is that of the first. With --data, `plain` trains on a file as the kit's trainer prepares it: the same tokens
and labels in the same order, and with --schedule-steps at the learning rates of a training of so many steps.
--profile adds where the GPU's time of two further steps goes; it slows those, which are not timed.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.step_clock import PROFILED_STEPS, Clock

RECIPE: dict[str, dict[str, Any]] = {
    "model": {"weights": "4bit"},
    "lora": {"r": 16, "alpha": 16},
    "training": {
        "backend": "unsloth",
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2e-4,
        "warmup_steps": 10,
        "optimizer": "adamw_8bit",
        "gradient_checkpointing": "unsloth",
        "logging_steps": 1,
        "save_steps": 100000,
    },
}
NO_RECOMPUTE = {"training.gradient_checkpointing": "off"}
BF16 = {**NO_RECOMPUTE, "model.weights": "bf16"}
WIDE = {**BF16, "training.batch_size": 8, "training.gradient_accumulation_steps": 1}
FUSED = {"training.optimizer": "adamw"}  # one kernel for many tensors, where bitsandbytes has one for each
QUIET = {"training.logging_steps": 100000}  # a logged loss is waited for
ONE_BUFFER = {"UNSLOTH_DISABLE_DOUBLE_BUFFER": "1", "UNSLOTH_GC_PREFETCH": "0"}
WHOLE = {"TUNESHIP_WHOLE_RECOMPUTE": "1"}
BUCKETED = {"UNSLOTH_SDPA_CUDNN_BUCKET": "128"}  # attention at the next of a few lengths
WAITING = {"TUNESHIP_WAITING_OPTIMIZER": "1"}
OWN = {**WHOLE, **BUCKETED, **WAITING, "UNSLOTH_GC_PREFETCH": "0"}  # Unsloth's and bitsandbytes' defaults
# keys in capitals are environment variables, switches of Unsloth and of the backend
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain-bf16": {},
    "transformers": {"training.backend": "transformers", "training.gradient_checkpointing": "on"},
    "recipe": {},
    "recipe-whole": WHOLE,
    "recipe-unsloth": OWN,
    "recipe-padded": {**OWN, "training.batches": "padded"},
    "recipe-padding-free": {"training.batches": "padding_free"},
    "recipe-quiet": QUIET,
    "recipe-one-buffer": ONE_BUFFER,
    "recipe-bucketed": BUCKETED,
    "recipe-waiting": WAITING,
    "4bit": NO_RECOMPUTE,
    "4bit-padded": {**NO_RECOMPUTE, "training.batches": "padded"},
    "16bit": BF16,
    "16bit-padded": {**BF16, "training.batches": "padded"},
    "16bit-padding-free": {**BF16, "training.batches": "padding_free"},
    "16bit-graphs": {**BF16, "UNSLOTH_BLOCK_CUDAGRAPHS": "1"},
    "16bit-recompute": {"model.weights": "bf16"},
    "16bit-wide": WIDE,
    "16bit-fused": {**BF16, **FUSED},
    "16bit-wide-fused": {**WIDE, **FUSED, **QUIET},
    "packed": {"training.packing": True},
    "packed-by-rows": {"training.packing": True, "UNSLOTH_TORCH_VARLEN": "0"},  # attention once for every row
    "16bit-packed": {**BF16, "training.packing": True},
    "two": {"training.processes": 2},
    "two-padded": {"training.processes": 2, "training.batches": "padded"},
    "two-packed": {"training.processes": 2, "training.packing": True},
    "two-16bit": {**BF16, "training.processes": 2},
    "two-transformers": {
        "training.processes": 2,
        "training.backend": "transformers",
        "training.gradient_checkpointing": "on",
    },
}
WARMUP_STEPS = 5  # compilation, allocator


def make_rows(tokenizer: Any, count: int, length: int, kind: str, seed: int = 3407) -> list[list[int]]:
    """Token ids of `count` rows."""
    rng = random.Random(seed)
    words = [tokenizer.decode([token]).strip() for token in range(300, 20000)]
    words = [word for word in words if word.isascii() and word.isalpha() and 2 <= len(word) <= 10]
    rows = []
    for _ in range(count):
        wanted = length if kind == "full" else max(24, min(length, int(math.exp(rng.gauss(math.log(300), 0.9)))))
        text = " ".join(rng.choice(words) for _ in range(wanted + 8))
        rows.append(tokenizer(text)["input_ids"][:wanted])
    return rows


def kit_config(model: str, variant: str, steps: int, length: int) -> Any:
    """The recipe with the variant's changes, as the trainer parses it."""
    from trainer.config import TrainConfig

    tree: dict[str, Any] = {"name": variant.lower(), "data": {"path": "rows"}, **json.loads(json.dumps(RECIPE))}
    tree["model"] |= {"base": model, "max_length_tokens": length}
    tree["training"]["max_steps"] = steps
    for key, value in VARIANTS[variant].items():
        if not key.isupper():
            section, _, name = key.partition(".")
            tree[section][name] = value
    return TrainConfig.model_validate(tree)


def run_kit(wish: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One variant through the kit's finetune(), or its like for several processes."""
    from modelstore import Store
    from trainer.backends import choose_backend

    config, store = kit_config(wish.model, wish.child, all_steps(wish), wish.length), Store(work.parent / "store")
    store.create()
    backend, _ = choose_backend(config, store.cache)
    from transformers import AutoTokenizer

    from trainer.across import finetuner
    from trainer.bases import resolve_base
    from trainer.prepare import Prepared
    from trainer.render import Example

    tokenizer = AutoTokenizer.from_pretrained(wish.model)
    rows = make_rows(tokenizer, rows_needed(wish), wish.length, wish.rows)
    examples = [Example(ids, [1] * len(ids)) for ids in rows]
    base = resolve_base(wish.model, store)
    prepared = Prepared(train=examples, held_out=[], prompts=[], report=None)  # type: ignore[arg-type]
    clock = Clock(wish.steps, wish.profile)
    summary = finetuner(config)(
        config,
        backend,
        base,
        tokenizer,
        prepared,
        work=work,
        on_step=lambda *_: clock.tick(),
        should_stop=lambda: False,
    ).summary
    log = [json.loads(line) for line in (work / "training.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    peak, tokens = summary.peak_memory_bytes, summary.tokens_per_step
    return {"clock": clock, "losses": losses, "steps": summary.steps, "step_tokens": tokens, "peak": peak}


def run_plain(wish: argparse.Namespace, work: Path) -> dict[str, Any]:
    """transformers + bitsandbytes + peft + trl as their documentation shows them."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    clock = Clock(wish.steps, wish.profile)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(wish.model)
    model = AutoModelForCausalLM.from_pretrained(
        wish.model, dtype=torch.bfloat16, quantization_config=four_bits, device_map={"": 0}, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    if wish.child == "plain-bf16":
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(torch.bfloat16)
    set_seed(3407)  # of the adapter's values, as the kit's recipe has it
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=modules, bias="none", task_type="CAUSAL_LM")
    data = plain_dataset(wish, tokenizer)
    settings = SFTConfig(
        output_dir=str(work),
        max_length=wish.length,
        max_steps=wish.schedule_steps or all_steps(wish),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=2e-4,
        lr_scheduler_type="linear",
        warmup_steps=10,
        weight_decay=0.01,
        optim="adamw_8bit",
        bf16=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="sequential" if wish.data else "random",
        seed=3407,
    )
    losses: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.tick()
            control.should_training_stop = state.global_step >= all_steps(wish)

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    trainer = SFTTrainer(
        model=get_peft_model(model, lora), args=settings, processing_class=tokenizer, train_dataset=data
    )
    trainer.add_callback(Watch())
    trainer.train()
    step_tokens = 8 * sum(map(len, data["input_ids"])) / len(data)
    peak = torch.cuda.max_memory_reserved()
    steps = trainer.state.global_step
    return {"clock": clock, "losses": losses, "steps": steps, "step_tokens": step_tokens, "peak": peak}


def plain_dataset(wish: argparse.Namespace, tokenizer: Any) -> Any:
    """Random rows, or those of a file in the order that the kit's trainer takes them in."""
    from datasets import Dataset

    if not wish.data:
        rows = make_rows(tokenizer, rows_needed(wish), wish.length, wish.rows)
        return Dataset.from_dict({"input_ids": rows, "labels": rows})
    from trainer.backends.recipe import SeededOrder, dataset
    from trainer.prepare import prepare
    from trainer.rows import read_rows

    rows_of_file = read_rows(wish.data, max_bad_share=0)
    prepared = prepare(
        rows_of_file, tokenizer, max_length_tokens=wish.length, held_out_share=0, seed=3407, questions=None
    )
    order = SeededOrder([len(example.input_ids) for example in prepared.train], 8, 3407)
    return dataset([prepared.train[number] for number in order])


def all_steps(wish: argparse.Namespace) -> int:
    """The timed ones and those that are profiled."""
    return int(wish.steps) + (PROFILED_STEPS if wish.profile else 0)


def rows_needed(wish: argparse.Namespace) -> int:
    """8 rows a step; packing fits more of them into one, so it needs more."""
    return int(all_steps(wish) * 8 * (8 if "packed" in wish.child else 1))


def measure(wish: argparse.Namespace) -> dict[str, Any]:
    """Run one variant here and say what it took."""
    work = Path(wish.work) / wish.child
    work.mkdir(parents=True, exist_ok=True)
    found = (run_plain if wish.child.startswith("plain") else run_kit)(wish, work)
    clock = found.pop("clock")
    times = clock.times
    steps = [after - before for before, after in itertools.pairwise(times)][WARMUP_STEPS:]
    second = statistics.median(steps)
    tokens = found["step_tokens"]
    return {
        "variant": wish.child,
        "seconds_per_step": round(second, 4),
        "fastest_step_s": round(min(steps), 4),
        "slowest_step_s": round(max(steps), 4),
        "timed_steps": len(steps),
        "tokens_per_step": round(tokens, 1),
        "tokens_per_s": round(tokens / second, 1),
        "load_and_first_step_s": round(times[1] - times[0], 1),
        "training_s": round(times[-1] - times[0], 1),
        "peak_reserved_gib": round(found["peak"] / 2**30, 3),
        "peak_after_steps_gib": clock.peaks_gib,
        "losses": [round(loss, 4) for loss in found["losses"]],
        "steps": found["steps"],
        **({"profile": clock.profile} if clock.profile else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", default="plain,recipe")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rows", choices=["full", "chat"], default="full")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--schedule-steps", type=int, default=0)
    parser.add_argument("--work", default="/tmp/tuneship-bench")
    parser.add_argument("--timeout-s", type=int, default=300)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.child:
        os.environ.update({key: value for key, value in VARIANTS[wish.child].items() if key.isupper()})
        try:
            print("RESULT " + json.dumps(measure(wish)), flush=True)
        except Exception:  # the reason goes to the parent, and the next variant still runs
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    results = [_child(variant, wish) for variant in wish.variants.split(",")]
    document = {**about("train_gpu"), "rows": wish.rows, "length_tokens": wish.length, "results": results}
    wish.out.parent.mkdir(parents=True, exist_ok=True)
    wish.out.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(any("error" in result for result in results))


def _child(variant: str, wish: argparse.Namespace) -> dict[str, Any]:
    argv = [sys.executable, "-m", "benchmarks.train_gpu", *sys.argv[1:], "--child", variant]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=wish.timeout_s)
    except subprocess.TimeoutExpired:
        return {"variant": variant, "error": f"longer than {wish.timeout_s} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = (
        json.loads(lines[-1][7:]) if lines else {"variant": variant, "error": (done.stdout + done.stderr)[-3000:]}
    )
    print(json.dumps(found), flush=True)
    return found


def about(benchmark: str) -> dict[str, Any]:
    """Head of a result document."""
    from trainer.machine import hardware, package_versions

    words = ["FOLDER" if word.startswith("/") else word for word in sys.argv[1:]]
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks.{benchmark} " + " ".join(words),
        "hardware": hardware(),
        "packages": package_versions(),
    }


if __name__ == "__main__":
    main()
