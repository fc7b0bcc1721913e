"""Training in several processes: equal shares, the same rows a step, what a process says at its end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelstore import UserError
from trainer import across
from trainer.across import RanksFailed, ranks_argv
from trainer.backends import choose_backend
from trainer.backends.recipe import SeededOrder
from trainer.config import TrainConfig, config_sha256
from trainer.divergence import Diverged
from trainer.finetune import Stopped
from trainer.plan import Lengths, Place
from trainer.plan_fit import Planner
from trainer.plan_shape import shape_of

PHI3 = {"model_type": "mistral", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}
PHI3 |= {"num_attention_heads": 32, "vocab_size": 32064}


def config(processes: int, batch: int, accumulation: int) -> TrainConfig:
    training = {"batch_size": batch, "gradient_accumulation_steps": accumulation, "processes": processes}
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "model": {"base": "hub:some/model", "weights": "bf16"},
            "data": {"path": "rows.jsonl"},
            "training": {"max_steps": 1, **training},
        }
    )


@pytest.mark.parametrize(
    ("processes", "batch", "accumulation", "share"),
    [(1, 4, 2, (4, 2)), (2, 4, 2, (4, 1)), (2, 4, 1, (2, 1)), (8, 4, 2, (1, 1)), (4, 4, 6, (2, 3)), (3, 2, 6, (2, 2))],
)
def test_the_effective_batch_stays(processes: int, batch: int, accumulation: int, share: tuple[int, int]) -> None:
    assert config(processes, batch, accumulation).training.share() == share
    assert processes * share[0] * share[1] == batch * accumulation


def test_a_batch_that_cannot_be_shared_is_refused_and_the_number_does_not_make_another_run() -> None:
    with pytest.raises(ValueError, match="= 8 rows cannot be shared by processes = 3"):
        config(3, 4, 2)
    assert config_sha256(config(2, 4, 2)) == config_sha256(config(1, 4, 2))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 61])
def test_processes_see_in_every_step_what_one_would_see(rows: int, grouped: bool) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    lengths, processes, batch, passes = [(7 * row) % 23 for row in range(rows)], 2, 2, 2
    effective = processes * batch * passes
    alone = list(SeededOrder(lengths, effective if grouped else 0, seed=1))
    together = SeededOrder(lengths, effective if grouped else 0, seed=1, shared=processes * batch)
    assert len(list(together)) == len(together)
    batches = BatchSampler(together, batch, drop_last=False)
    ranks = [list(BatchSamplerShard(batches, processes, rank)) for rank in range(processes)]
    assert len(ranks[0]) == len(ranks[1]) == -(-rows // (processes * batch))
    for step in range(-(-rows // effective)):
        seen = [row for rank in ranks for part in rank[step * passes : (step + 1) * passes] for row in part]
        assert sorted(row for row in seen if row < rows) == sorted(alone[step * effective : (step + 1) * effective])


def test_a_plan_is_that_of_one_process() -> None:
    planner = Planner(shape_of(PHI3), Place("cuda", "unsloth"), Lengths(2048, 2048), 2048.0)
    two, half = planner.propose(config(2, 4, 1)), planner.propose(config(1, 2, 1))
    assert (two.peak, two.operations) == (half.peak, half.operations)
    assert all(each.config.training.processes == 2 for each in planner.alternatives(config(2, 4, 1)))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match=r"processes = 2 needs as many GPUs, and 1 can be seen.*CUDA_VISIBLE_DEVICES"):
        choose_backend(config(2, 4, 2), tmp_path)


def test_the_command_is_torchrun_on_this_machine() -> None:
    argv = ranks_argv(2, Path("work"))
    assert argv[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert argv[3:] == [
        *("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m", "trainer.ranks", "work")
    ]


@pytest.mark.parametrize(
    ("events", "code", "error", "part"),
    [
        ([{"kind": "Stopped", "step": 3, "total": 9}], 0, Stopped, "Stopped at step 3 of 9"),
        ([{"kind": "Diverged", "message": "not a number"}] * 2, 1, Diverged, "^not a number$"),
        ([{"kind": "UserError", "message": "no base"}, {"kind": "failed", "message": "x"}], 1, UserError, "^no base$"),
        ([{"kind": "MemoryError", "message": "CUDA out of memory"}], 1, MemoryError, "CUDA out of memory"),
        ([{"kind": "failed", "message": "KeyError: 5"}], 1, RanksFailed, "broke down:\nKeyError: 5\nMore is in"),
        ([], 1, RanksFailed, r"without a word \(code 1\)"),
        ([], 0, RanksFailed, r"without a word \(code 0\)"),
    ],
)
def test_an_ending_of_a_process_is_the_parents(
    events: list[dict[str, Any]], code: int, error: type[Exception], part: str, tmp_path: Path, monkeypatch: Any
) -> None:
    step = {"kind": "step", "step": 1, "total": 2, "figures": {"loss": float("nan")}}
    lines = ["a library's banner", *(json.dumps(event) for event in [step, *events])]
    program = f"import sys; print({chr(10).join(lines)!r}); sys.exit({code})"
    monkeypatch.setattr(across, "ranks_argv", lambda *_: [sys.executable, "-c", program])
    steps: list[int] = []
    with pytest.raises(error, match=part):
        across._train(2, tmp_path, lambda done, *_: steps.append(done), lambda: True)
    assert steps == [1] and (tmp_path / across.STOP).exists()


def test_a_mistake_of_the_user_in_real_processes_is_one_message(tmp_path: Path) -> None:
    base: Any = SimpleNamespace(id="gone", path=tmp_path / "bases" / "gone")
    rows: Any = SimpleNamespace(train=[], held_out=[])
    wish, never = config(2, 2, 1), lambda *_: False
    work: dict[str, Any] = {"work": tmp_path / "work", "on_step": never, "should_stop": never}
    with pytest.raises(UserError, match=r"^There is no base model 'gone'"):
        across.finetune_across(wish, choose_backend(wish, tmp_path)[0], base, None, rows, **work)
