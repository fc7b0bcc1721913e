"""`plan = "fastest"`: what is worth a try, what real trials decide, and where the choice is remembered."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from until_trained import losses, train

from modelstore import Store
from trainer import across, pipeline, plan_check, plan_choice
from trainer.config import TrainConfig, config_sha256
from trainer.finetune import Stopped, finetune
from trainer.plan import Lengths, Place
from trainer.plan_choice import STEPS, TRIED, after_out_of_memory, fastest, fitting, shortlist
from trainer.plan_data import DataSize, typical_rows
from trainer.plan_fit import Planner, changed
from trainer.plan_remembered import Candidate, recall, remember
from trainer.plan_report import Report, make_report
from trainer.plan_shape import shape_of
from trainer.progress import Reporter
from trainer.render import Example

ROOT = Path(__file__).parents[2]
PHI3 = {"model_type": "mistral", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}
PHI3 |= {"num_attention_heads": 32, "vocab_size": 32064}


def phi3(limit: int, tokens: int = 2048, **training: Any) -> Report:
    """All of the recipe's 8 rows in one pass, as the choice begins."""
    options = {"batch_size": 8, "optimizer": "adamw_8bit", "max_steps": 200, "plan": "fastest", **training}
    config = TrainConfig.model_validate(
        {
            "name": "tiny",
            "model": {"base": "hub:some/model", "weights": "bf16"},
            "data": {"path": "rows.jsonl"},
            "training": options,
        }
    )
    data = DataSize(Lengths(tokens, tokens), 1600, float(tokens), "rows")
    return make_report(config, shape_of(PHI3), Place("cuda", "unsloth"), data, limit)


@pytest.fixture
def with_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_choice.importlib.util, "find_spec", lambda name: name == "bitsandbytes")


@pytest.mark.usefixtures("with_bitsandbytes")
@pytest.mark.parametrize("tokens", [64, 512, 2048])
@pytest.mark.parametrize("gib", [80, 24, 12, 6])
def test_a_short_list_of_plans_that_fit_has_each_kind_in_doubt_before_its_second(gib: int, tokens: int) -> None:
    proposals = fitting(phi3(gib << 30, tokens))
    assert all(p.peak.bytes <= gib << 30 for p in proposals)
    listed = shortlist(proposals)
    kinds = [(p.config.model.weights, p.config.training.gradient_checkpointing) for p in listed]
    in_doubt = {
        (p.config.model.weights, p.config.training.gradient_checkpointing)
        for p in proposals
        if p.operations <= 1.25 * proposals[0].operations
    }
    assert listed[0] == proposals[0] and 1 <= len(listed) <= TRIED
    assert len(set(kinds[: len(in_doubt)])) == min(len(in_doubt), TRIED)


@pytest.mark.usefixtures("with_bitsandbytes")
def test_recomputing_is_not_tried_where_a_plan_without_it_fits() -> None:
    assert {p.config.training.gradient_checkpointing for p in shortlist(fitting(phi3(80 << 30)))} == {"off"}
    assert "off" not in {p.config.training.gradient_checkpointing for p in shortlist(fitting(phi3(6 << 30)))}


@pytest.mark.usefixtures("with_bitsandbytes")
def test_where_nothing_fits_the_plan_that_needs_least_is_left() -> None:
    report = phi3(1 << 30)
    (left,) = fitting(report)
    assert left.peak.bytes == min(p.peak.bytes for p in report.planner.alternatives(report.config))


def test_without_bitsandbytes_nothing_is_tried_in_4_bits() -> None:
    assert {p.config.model.weights for p in fitting(phi3(80 << 30))} == {"bf16"}


def test_batches_that_processes_split_into_the_same_share_are_one_plan() -> None:
    planner = Planner(shape_of(PHI3), Place("cuda", "transformers"), Lengths(64, 64), 64.0)
    wish = changed(phi3(80 << 30).config, {"training.processes": 2})
    proposals = planner.alternatives(wish, precision=False)
    shares = [p.config.training.share() for p in shortlist(proposals)]
    assert len(shares) == len(set(shares)) and (4, 1) in shares


def test_after_memory_ran_out_the_next_plan_needs_clearly_less() -> None:
    proposals = fitting(phi3(80 << 30))
    listed = shortlist(proposals)
    spare, least = after_out_of_memory(proposals, listed), min(p.peak.bytes for p in listed)
    assert spare.peak.bytes <= 0.85 * least
    smallest = [min(proposals, key=lambda p: p.peak.bytes)]
    assert after_out_of_memory(proposals, smallest) == smallest[0]


def candidate(batch: int, seconds: float | None) -> Candidate:
    return Candidate(
        weights="bf16",
        gradient_checkpointing="off",
        batch_size=batch,
        gradient_accumulation_steps=8 // batch,
        predicted_peak_bytes=batch << 30,
        seconds_per_step=seconds,
    )


def test_the_fastest_is_what_took_the_least_time() -> None:
    assert fastest([candidate(8, 0.7), candidate(4, 0.6), candidate(2, None)]) == candidate(4, 0.6)
    assert fastest([candidate(8, None)]) is None


def test_what_was_measured_is_remembered_until_another_plan_is_worth_a_try(tmp_path: Path) -> None:
    kind, untried = {"hardware": "a card"}, [candidate(8, None), candidate(4, None)]
    assert recall(tmp_path, kind, untried) is None
    remember(tmp_path, kind, [candidate(8, 0.7), candidate(4, None)])
    assert recall(tmp_path, kind, untried) == [candidate(8, 0.7), candidate(4, None)]
    assert recall(tmp_path, kind, untried[:1]) == [candidate(8, 0.7)], "the other does not fit today"
    assert recall(tmp_path, kind, [*untried, candidate(2, None)]) is None
    assert recall(tmp_path, kind, untried[1:]) is None, "memory ran out then, which may be otherwise today"
    assert recall(tmp_path, {"hardware": "another card"}, untried) is None
    (file,) = tmp_path.glob("plans/*.json")
    for broken in (file.read_text()[:-20], "", "[]", '{"kind": {}, "candidates": [{"weights": 3}]}'):
        file.write_text(broken)
        assert recall(tmp_path, kind, untried) is None
    remember(tmp_path, kind, [candidate(8, 0.7), candidate(4, 0.6)])
    assert recall(tmp_path, kind, untried) and list(tmp_path.glob("plans/.*")) == []


@pytest.mark.parametrize(("rows", "packing"), [(3, False), (100, False), (1000, False), (1000, True)])
def test_typical_rows_are_short_and_long_ones(rows: int, packing: bool) -> None:
    examples = [Example([1] * (10 + place), [1] * (10 + place)) for place in range(rows)]
    config = changed(phi3(80 << 30).config, {"training.packing": packing})
    lengths = [len(example.input_ids) for example in typical_rows(config, examples, STEPS)]
    if packing:
        assert sum(lengths) >= STEPS * 8 * 2048
    else:
        assert len(lengths) == STEPS * 8
    assert abs(sum(lengths) / len(lengths) / (10 + rows / 2) - 1) < 0.2
    assert max(lengths) - min(lengths) > rows / 2


def test_the_key_leaves_the_hash_of_other_configs_as_it_was(wish: TrainConfig) -> None:
    fast = changed(wish, {"training.plan": "fastest"})
    assert config_sha256(fast) != config_sha256(wish)
    tree = wish.model_dump()
    del tree["training"]["plan"]
    assert config_sha256(TrainConfig.model_validate(tree)) == config_sha256(wish)
    golden = TrainConfig.model_validate(
        {
            "name": "golden",
            "model": {"base": "hub:some/model"},
            "data": {"path": "rows.jsonl"},
            "training": {"max_steps": 1},
        }
    )
    assert config_sha256(golden).startswith("02af3b930b01"), "configs were hashed before the key existed"


def test_full_training_has_no_plans_to_choose_from(wish: TrainConfig) -> None:
    with pytest.raises(ValueError, match='set plan = "as_written"'):
        changed(wish, {"training.plan": "fastest", "training.method": "full"})


@pytest.fixture
def fast(wish: TrainConfig) -> TrainConfig:
    """4 rows a step, as 2 x 2."""
    return changed(
        wish,
        {"training.plan": "fastest", "training.batch_size": 2, "training.gradient_accumulation_steps": 2},
    )


def tried(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("plan: tried")]


def plan_of(config: TrainConfig) -> tuple[int, int, str]:
    training = config.training
    return training.batch_size, training.gradient_accumulation_steps, training.gradient_checkpointing


def test_the_pipeline_trains_with_what_was_measured_and_remembers_it(
    fast: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, again, store = list[str](), list[str](), Store(tmp_path / "a")
    seen = train(fast, store, said, monkeypatch)
    measured = json.loads(next((store.cache / "plans").iterdir()).read_text())["candidates"]
    assert len(tried(said)) == len(measured) >= 2 and all(each["seconds_per_step"] > 0 for each in measured)
    best = min(measured, key=lambda each: each["seconds_per_step"])
    assert plan_of(seen["config"]) == (best["batch_size"], best["gradient_accumulation_steps"], "off")
    assert not list(store.path.rglob("measured-steps-*"))
    train(changed(fast, {"training.learning_rate": 2e-3}), store, again, monkeypatch)
    assert tried(again) == [] and any("remembered as the fastest" in line for line in again)
    plain = Store(tmp_path / "b")
    train(changed(seen["config"], {"training.plan": "as_written"}), plain, [], monkeypatch)
    (run,) = [log for log in (store.path / "work").glob("*/training.jsonl") if "0.001" in begun(log)]
    mine = [json.loads(line)["loss"] for line in run.open()]
    assert mine == losses(plain), "the trials change nothing in the training that follows"


def begun(log: Path) -> str:
    return str(json.loads((log.parent / "begun.json").read_text())["training"]["learning_rate"])


def test_a_stopped_training_keeps_its_plan(fast: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, said = Store(tmp_path), list[str]()
    monkeypatch.setattr(plan_choice, "fastest", lambda measured: measured[-1])
    report = Reporter()
    steps: list[int] = []
    monkeypatch.setattr(report, "on_step", lambda step, *_: steps.append(step))
    with pytest.raises(Stopped, match="step 3 of 8"):
        pipeline.train(fast, store, report, lambda: steps[-1:] == [3], again=False)
    monkeypatch.undo()
    for file in (store.cache / "plans").iterdir():
        file.unlink()
    monkeypatch.setattr(plan_check, "free_memory_bytes", lambda processes: 1 << 40)
    seen = train(fast, store, said, monkeypatch)
    assert tried(said) == [] and any("with which this run began" in line for line in said)
    assert plan_of(seen["config"]) == (1, 4, "off")
    assert (seen["tuned"].summary.resumed_from_step, seen["tuned"].summary.steps) == (3, 8)


def finetuner_without_memory(too_much: Callable[[TrainConfig], bool]) -> Callable[..., Any]:
    def choose(config: TrainConfig) -> Any:
        def runs_out(*_: Any, **__: Any) -> Any:
            raise MemoryError("provoked")

        return runs_out if too_much(config) else finetune

    return choose


def test_a_plan_that_runs_out_of_memory_is_not_taken(
    fast: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr(across, "finetuner", finetuner_without_memory(lambda config: config.training.batch_size == 4))
    seen = train(fast, Store(tmp_path), said, monkeypatch)
    assert tried(said)[0].endswith("4 x 1 rows: out of memory")
    assert plan_of(seen["config"])[0] < 4


def test_where_all_run_out_of_memory_a_smaller_plan_is_taken_and_may_run_out_too(
    fast: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, trained = list[str](), list[tuple[int, int, str]]()
    monkeypatch.setattr(across, "finetuner", finetuner_without_memory(lambda _: True))

    def runs_out_once(config: TrainConfig, *rest: Any, **named: Any) -> Any:
        trained.append(plan_of(config))
        if len(trained) == 1:
            raise MemoryError("provoked")
        return finetune(config, *rest, **named)

    monkeypatch.setattr(pipeline, "finetuner", lambda _: runs_out_once)
    monkeypatch.setattr(plan_check, "_cheaper", lambda *_: {"training.gradient_checkpointing": "on"})
    seen = train(fast, Store(tmp_path), said, monkeypatch)
    assert all(line.endswith("out of memory") for line in tried(said)) and len(tried(said)) >= 2
    assert trained == [plan_of(seen["config"]), (*plan_of(seen["config"])[:2], "on")]
    assert seen["manifest"]["changed_after_out_of_memory"] == {"training.gradient_checkpointing": "on"}


def test_what_ran_out_of_memory_in_the_training_is_not_chosen_for_the_next(
    fast: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = list[tuple[int, int, str]]()

    def runs_out_once(config: TrainConfig, *rest: Any, **named: Any) -> Any:
        trained.append(plan_of(config))
        if len(trained) == 1:
            raise MemoryError("provoked")
        return finetune(config, *rest, **named)

    with monkeypatch.context() as first:
        first.setattr(pipeline, "finetuner", lambda _: runs_out_once)
        first.setattr(plan_check, "_cheaper", lambda *_: {"training.gradient_checkpointing": "on"})
        train(fast, Store(tmp_path), [], first)
    said = list[str]()
    seen = train(changed(fast, {"training.learning_rate": 2e-3}), Store(tmp_path), said, monkeypatch)
    assert tried(said) == [] and any("remembered as the fastest" in line for line in said)
    assert plan_of(seen["config"]) != trained[0]


def test_a_model_without_plans_trains_as_it_is_written(
    fast: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelstore import UserError

    def refuses(*_: Any) -> Any:
        raise UserError("a mixture of experts")

    monkeypatch.setattr(plan_check, "find_shape", refuses)
    said = list[str]()
    seen = train(fast, Store(tmp_path), said, monkeypatch)
    assert plan_of(seen["config"]) == (2, 2, "off")
    assert any("plan: as it is written; not predicted: a mixture of experts" in line for line in said)


def test_sigterm_while_plans_are_tried_stops_cleanly(fast: TrainConfig, tmp_path: Path) -> None:
    tree = fast.model_dump(mode="json")
    lines = ['name = "tiny"']
    for section in ("model", "data", "training"):
        lines.append(f"[{section}]")
        values = {key: value for key, value in tree[section].items() if value is not None}
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "wish.toml").write_text("\n".join(lines))
    argv = [sys.executable, "-m", "trainer", "train", "--config", str(tmp_path / "wish.toml")]
    with subprocess.Popen(
        [*argv, "--store", str(tmp_path / "store")], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stderr is not None
        for line in trainer.stderr:
            if "are tried" in line:
                trainer.send_signal(signal.SIGTERM)
                break
        said = trainer.stderr.read()
    assert trainer.returncode == 3, said
    assert "Stopped at step 0 of 8; the same command continues from there." in said and "Traceback" not in said
    assert not list(tmp_path.rglob("measured-steps-*")) and not list(tmp_path.rglob("plan.json"))


def test_a_published_run_says_what_was_chosen_among_what(base_folder: Path, data: Path, tmp_path: Path) -> None:
    config = TrainConfig.model_validate(
        {
            "name": "tiny",
            "model": {"base": str(base_folder), "max_length_tokens": 128},
            "data": {"path": str(data)},
            "lora": {"r": 32, "alpha": 64},
            "training": {"plan": "fastest", "max_steps": 30, "learning_rate": 2e-3, "warmup_steps": 2, "batch_size": 2},
            "export": {"quantizations": ["Q8_0"]},
        }
    )
    store = Store(tmp_path)
    run = pipeline.train(config, store, Reporter(), lambda: False, again=False).run
    plan = run.manifest.training["plan"]
    assert 0 < plan["predicted_peak_bytes"] <= plan["chosen"]["predicted_peak_bytes"]
    assert plan["chosen"] in plan["candidates"] and len(plan["candidates"]) >= 2
    assert all(each["seconds_per_step"] > 0 and each["predicted_peak_bytes"] > 0 for each in plan["candidates"])
    assert run.manifest.config["training"]["batch_size"] == 2, "the config is recorded as it is written"
    assert not pipeline.train(config, store, Reporter(), lambda: False, again=False).is_new
