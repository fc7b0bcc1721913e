"""The whole story: rows in, a proven and published run out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelstore import ArtifactSpec, Base, Check, Run, Staging, Store, UserError, new_run_id
from trainer import unfinished
from trainer.across import finetuner
from trainer.backends import Backend, choose_backend
from trainer.bases import resolve_base
from trainer.config import TrainConfig, config_dict, config_sha256
from trainer.export import base_files, export, needed_bytes
from trainer.failures import saying_when_full
from trainer.finetune import Finetuned
from trainer.gguf_files import refuse_unknown, tool_version
from trainer.importance import calibration_text, imatrix_program
from trainer.machine import hardware, package_versions, precision
from trainer.measured_steps import Trial
from trainer.plan_check import check, train_within_memory
from trainer.plan_choice import choose_plan
from trainer.plan_remembered import forget
from trainer.prepare import Prepared, prepare
from trainer.probes import choose_probes
from trainer.progress import Reporter
from trainer.rows import Rows, rows_of
from trainer.verify import measure_reference, verify_files, verify_merged
from trainer.verify_options import verify_options


@dataclass(frozen=True)
class Outcome:
    """A published run; `is_new` is False when the same config and data had been trained before."""

    run: Run
    is_new: bool


class VerificationFailed(Exception):
    """The exported files are not the fine-tune. Nothing was published; the staging folder was kept."""

    def __init__(self, failed: list[Check], staging: Path) -> None:
        lines = "\n".join(f"  {check.name}: {check.figures}, wanted {check.limit}" for check in failed)
        super().__init__(f"Verification failed, so nothing was published:\n{lines}\nThe files are in {staging}.")
        self.failed = failed


def train(
    config: TrainConfig,
    store: Store,
    report: Reporter,
    should_stop: Callable[[], bool],
    again: bool,
    ignore_plan: bool = False,
) -> Outcome:
    """Everything that `make train` does. `again` trains although an equal run exists, `ignore_plan` although the
    predicted memory is not there.
    """
    rows = rows_of(config)
    report.say(f"data: {config.data.path}: {len(rows.conversations)} rows, format {rows.format}")
    refuse_unknown(config.export.quantizations)
    if config.export.importance_matrix:
        imatrix_program()  # or a refusal, before anything is trained
    store.create()
    fingerprint = f"{config_sha256(config)} {rows.sha256}"
    if not again and (run := unfinished.published(store, config_sha256(config), rows.sha256)):
        _settle(store, run, report)
        return Outcome(run, is_new=False)
    backend, reason = choose_backend(config, store.cache)
    report.say(f"backend: {backend.name}, because {reason}")
    base = resolve_base(config.model.base, store)
    _refuse_full_disk(config, base, store)
    for refusal in unfinished.refusals(store, fingerprint, config_dict(config)):
        report.say(refusal)
    claimed = unfinished.claim(store, fingerprint)
    if claimed:
        report.say(f"continues run {claimed}, {unfinished.progress(store, claimed)}")
    run_id = claimed or new_run_id(config.name, config.data.path.parent.name)
    with store.stage(run_id) as staging, saying_when_full(store.path):
        unfinished.begin(store, run_id, fingerprint, config_dict(config))
        run = _train_and_publish(config, backend, store, staging, base, rows, report, should_stop, ignore_plan)
    _settle(store, run, report)
    return Outcome(run, is_new=True)


def _settle(store: Store, run: Run, report: Reporter) -> None:
    """What follows a publication. An earlier attempt may have been killed in between, so it is done again."""
    report.say(f"published: {run.id}")
    unfinished.finish(store, run.id)
    if store.channel("current") is None:
        store.promote(run.id)
        report.say(f"the channel current names {run.id}")


def _train_and_publish(
    config: TrainConfig,
    backend: Backend,
    store: Store,
    staging: Staging,
    base: Base,
    rows: Rows,
    report: Reporter,
    should_stop: Callable[[], bool],
    ignore_plan: bool,
) -> Run:
    report.say(f"base: {base.id} ({base.manifest.base['repository']})")
    tokenizer = load_tokenizer(base)
    prepared = prepare_rows(config, rows, tokenizer, report)
    quantizations, work = config.export.quantizations, store.work(staging.run_id)
    trial = Trial(backend, base, tokenizer, should_stop)
    choice = choose_plan(config, trial, prepared.train, store.cache, work, report.say)
    chosen = choice.applied_to(config)
    weights = precision(chosen.model.weights)
    report.say(f"training: run {staging.run_id}, {len(prepared.train)} rows, base weights in {weights}")
    planned = check(chosen, backend.name, base, prepared.train, report.say, ignore=ignore_plan)

    def attempt(plan: TrainConfig) -> Finetuned:
        if plan != chosen:  # memory ran out in that one
            forget(store.cache, choice)
        finetune, on_step = finetuner(plan), report.on_step
        return finetune(plan, backend, base, tokenizer, prepared, work=work, on_step=on_step, should_stop=should_stop)

    with base_files(base, store, quantizations, report.say) as base_has_files:
        tuned = train_within_memory(chosen, planned, work, report.say, attempt)
        probes, four_bits = choose_probes(prepared.train), chosen.model.weights == "4bit"
        untuned = base.folder("hf") if tuned.weights else None
        reference = measure_reference(tuned.model, tokenizer, probes, four_bits=four_bits, base=untuned)
        tuned.save_adapter(staging.path / "adapter")
        tuned.release()
        artifacts, (checks, merged) = export(
            base,
            staging.path,
            base_has_files,
            lambda: verify_merged(staging.path, base, tokenizer, reference, report.say, tuned.weights),
            quantizations=quantizations,
            say=report.say,
            trained=tuned.weights,
            calibration=calibration_text(prepared.train, tokenizer) if config.export.importance_matrix else None,
            adapter_gguf=config.export.adapter_gguf,
        )
    artifacts += _keep_records(work, staging.path, prepared)
    checks += verify_files(staging.path, base, artifacts, tokenizer, reference, merged, report.say)
    base = store.base(base.id)  # with the files that were made meanwhile
    checks += verify_options(staging.path, base, artifacts, tokenizer, reference, config.export, report.say)
    if failed := [check for check in checks if not check.passed]:
        raise VerificationFailed(failed, staging.path)
    report.say(f"publish: {staging.run_id}")
    plan = {**choice.for_manifest(), **planned.for_manifest()}
    return staging.publish(_describe(config, base, rows, prepared, tuned, plan, checks), artifacts)


def load_tokenizer(base: Base) -> Any:
    """The base model's tokenizer with its chat template; padding on the right, as training needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder("hf"), trust_remote_code=False)
    tokenizer.padding_side = "right"
    return tokenizer


def prepare_rows(config: TrainConfig, rows: Rows, tokenizer: Any, report: Reporter) -> Prepared:
    """The rows as examples, with what was done to them said."""
    prepared = prepare(
        rows,
        tokenizer,
        max_length_tokens=config.model.max_length_tokens,
        held_out_share=config.data.held_out_share,
        seed=config.data.seed,
        questions=config.data.questions,
    )
    figures = prepared.report
    report.say(
        f"prepared: {figures.tokens} tokens, {figures.trained_share:.0%} trained, {figures.truncated} rows cut, "
        f"{figures.duplicates} duplicates, {len(figures.bad_rows)} bad rows"
    )
    for first, second in figures.conflicts[:5]:
        report.say(f"warning: lines {first} and {second} contradict each other about one question")
    if figures.contamination:
        highest = figures.contamination.highest
        report.say(f"no evaluation question is in the data: highest similarity {highest:.2f}")
    report.say(f"a row, with the trained tokens marked: {figures.sample!r}")
    return prepared


def _refuse_full_disk(config: TrainConfig, base: Base, store: Store) -> None:
    import shutil

    kept = config.training.keep_checkpoints if config.training.method == "full" else 0
    needed, free = needed_bytes(base, config.export.quantizations, kept), shutil.disk_usage(store.path).free
    if needed > free:
        raise UserError(
            f"{store.path} has {free / 1e9:.1f} GB free and this run needs {needed / 1e9:.1f} GB (checkpoints, merged "
            "weights, GGUF files). `make prune` removes runs that no channel names; --store names another disk."
        )


def _keep_records(work: Path, staging: Path, prepared: Prepared) -> list[ArtifactSpec]:
    """The training curve and what was done to the data belong to the run."""
    (staging / "training.jsonl").write_bytes((work / "training.jsonl").read_bytes())
    report = json.dumps(asdict(prepared.report), ensure_ascii=False, indent=1)
    (staging / "prepare.json").write_text(report + "\n", encoding="utf-8")
    return [ArtifactSpec("training-log", "training.jsonl"), ArtifactSpec("prepare-report", "prepare.json")]


def _describe(
    config: TrainConfig,
    base: Base,
    rows: Rows,
    prepared: Prepared,
    tuned: Finetuned,
    plan: dict[str, Any],
    checks: list[Check],
) -> dict[str, Any]:
    figures = prepared.report
    return {
        "base": {**base.manifest.base, "id": base.id},
        "dataset": {
            "path": str(config.data.path),
            "sha256": rows.sha256,
            "rows": len(rows.conversations),
            "train_rows": len(prepared.train),
            "held_out_rows": len(prepared.held_out),
            "tokens": figures.tokens,
            "trained_share": figures.trained_share,
        },
        "config": config_dict(config),
        "config_sha256": config_sha256(config),
        "packages": package_versions() | tool_version(),
        "hardware": hardware(),
        "training": {**asdict(tuned.summary), "plan": plan},
        "chat_template_sha256": base.manifest.chat_template_sha256,
        "serve": {"quantization": config.export.serve_quantization},
        "verification": checks,
    }
