"""`train --dry-run`: real optimizer steps at the longest rows, predicted against seen peak, nothing published."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from modelstore import Store
from trainer.config import TrainConfig
from trainer.plan_data import longest_batch

STEPS = 2  # one, and a second because the optimizer's state exists only after the first


def dry_run(config: TrainConfig, store: Store, report: Any) -> dict[str, Any]:
    """Figures in bytes and seconds. The base is brought into the store as for a training; nothing else stays, but for
    what `training.plan = "fastest"` measures.
    """
    from trainer.backends import choose_backend
    from trainer.bases import resolve_base
    from trainer.measured_steps import Trial
    from trainer.pipeline import load_tokenizer, prepare_rows
    from trainer.plan_check import check
    from trainer.plan_choice import choose_plan
    from trainer.rows import rows_of

    rows = rows_of(config)
    store.create()
    backend, reason = choose_backend(config, store.cache)
    report.say(f"backend: {backend.name}, because {reason}")
    base = resolve_base(config.model.base, store)
    tokenizer = load_tokenizer(base)
    examples = prepare_rows(config, rows, tokenizer, report).train
    trial = Trial(backend, base, tokenizer, should_stop=lambda: False)
    with tempfile.TemporaryDirectory(prefix="tuneship-dry-run-") as work:
        config = choose_plan(config, trial, examples, store.cache, Path(work), report.say).applied_to(config)
    planned = check(config, backend.name, base, examples, report.say, ignore=True)
    again = longest_batch(config, examples) * config.training.gradient_accumulation_steps * STEPS
    summary = trial.run(config, again, STEPS, on_step=report.on_step).summary
    predicted = planned.report.proposal.peak if planned.report else None
    off = predicted.bytes / summary.peak_memory_bytes - 1 if predicted else None
    return {
        "predicted_bytes": predicted.bytes if predicted else None,
        "seen_bytes": summary.peak_memory_bytes,
        "off": round(off, 4) if off is not None else None,
        "tokens_per_s": summary.tokens_per_s,
        "loss": summary.final_loss,
    }


def as_line(found: dict[str, Any]) -> str:
    """What `train --dry-run` prints."""
    seen = f"{found['seen_bytes'] / 2**30:.2f} GiB seen"
    if found["predicted_bytes"] is None:
        return f"dry run: {seen}, none predicted; {found['tokens_per_s']:.0f} tokens/s; nothing was published"
    predicted = f"{found['predicted_bytes'] / 2**30:.2f} GiB predicted"
    speed = f"{found['tokens_per_s']:.0f} tokens/s"
    return f"dry run: {predicted}, {seen} ({found['off']:+.1%}); {speed}; nothing was published"
