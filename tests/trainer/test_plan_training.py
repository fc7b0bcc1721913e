"""The plan in real trainings of a tiny model: checked before, cheaper after memory ran out, and the dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from until_trained import losses, train

from modelstore import Store, UserError
from trainer import pipeline, plan_check
from trainer.config import TrainConfig
from trainer.dry_run import dry_run
from trainer.finetune import finetune
from trainer.plan import FRAMEWORK_BYTES
from trainer.progress import Reporter


def test_the_pipeline_continues_with_a_cheaper_plan_on_the_same_curve(
    wish: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, cut, said = Store(tmp_path / "undisturbed"), Store(tmp_path / "cut"), list[str]()
    train(wish, undisturbed, [], monkeypatch)
    plans: list[tuple[int, int]] = []

    def runs_out_once(config: TrainConfig, *rest: Any, **named: Any) -> Any:
        plans.append((config.training.batch_size, config.training.gradient_accumulation_steps))
        steps = iter(range(100))

        def stop() -> bool:
            if len(plans) == 1 and next(steps) == 5:
                raise MemoryError("provoked")
            return False

        return finetune(config, *rest, **{**named, "should_stop": stop})

    monkeypatch.setattr(pipeline, "finetuner", lambda _: runs_out_once)
    monkeypatch.setattr(
        plan_check, "_cheaper", lambda *_: {"training.batch_size": 2, "training.gradient_accumulation_steps": 2}
    )
    seen = train(wish, cut, said, monkeypatch)
    assert plans == [(4, 1), (2, 2)]
    assert (seen["tuned"].summary.resumed_from_step, seen["tuned"].summary.steps) == (4, 8)
    assert seen["manifest"]["changed_after_out_of_memory"]["training.batch_size"] == 2
    assert any("out of memory (provoked)" in line and "training.batch_size = 2" in line for line in said)
    assert losses(undisturbed) == pytest.approx(losses(cut), rel=0.01), "the same effective batch, the same curve"


def test_a_plan_that_cannot_fit_is_refused_and_one_that_hardly_fits_is_warned_of(
    wish: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(plan_check, "resident_bytes", lambda: 0)
    monkeypatch.setattr(plan_check, "free_memory_bytes", lambda processes: 1 << 20)
    with pytest.raises(UserError, match="--ignore-plan"):
        pipeline.train(wish, Store(tmp_path), Reporter(), lambda: False, again=False)
    assert Store(tmp_path).runs() == []
    monkeypatch.setattr(plan_check, "free_memory_bytes", lambda processes: int(FRAMEWORK_BYTES * 0.98))
    train(wish, Store(tmp_path), said, monkeypatch)
    assert any(line.startswith("warning: plan:") and "does not fit" in line for line in said)


def test_a_dry_run_measures_and_leaves_nothing(wish: TrainConfig, tmp_path: Path) -> None:
    found = dry_run(wish, Store(tmp_path), Reporter())
    assert found["seen_bytes"] > 0 and found["predicted_bytes"] > 0 and found["loss"] > 0
    assert list((tmp_path / "runs").iterdir()) == []
