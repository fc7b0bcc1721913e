"""A config is refused as a whole, with every problem named, or accepted as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelstore import UserError
from tests.any_toml import NOISE, ODD, document, exchanged
from trainer.config import config_sha256, load_config
from trainer.config_reference import reference

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = 'name = "x"\n[model]\nbase = "package:a"\n[data]\npath = "d.jsonl"\n[training]\nmax_steps = 1\n'

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


PRESETS = sorted(path for path in CONFIGS.glob("*.toml") if path.stem != "eval")  # that one is the clients'


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid(path: Path) -> None:
    assert load_config(path).name


def test_the_reference_is_what_the_parser_takes() -> None:
    page = CONFIGS.parent / "docs" / "configuration.md"
    assert page.read_text() == reference(), "python -m trainer config > docs/configuration.md"


def test_phi3_mini_is_the_published_recipe() -> None:
    config = load_config(CONFIGS / "phi3-mini.toml")
    assert config.model.base.startswith("hub:unsloth/Phi-3-mini-4k-instruct")
    assert (config.model.weights, config.model.max_length_tokens) == ("4bit", 2048)
    assert (config.lora.r, config.lora.alpha, config.lora.target_modules) == (16, 16, SEVEN)
    training = config.training
    assert (training.batch_size, training.gradient_accumulation_steps) == (4, 2)
    assert (training.warmup_steps, training.max_steps, training.logging_steps) == (10, 200, 5)
    assert (training.optimizer, training.gradient_checkpointing) == ("adamw_8bit", "unsloth")


def test_all_problems_are_reported_at_once_with_their_keys(tmp_path: Path) -> None:
    text = SMALL.replace("max_steps = 1", 'learning_rat = 1\nbatch_size = 0\nschedule = "cosin"\nmax_steps = 1')
    with pytest.raises(UserError) as raised:
        load_config(write(tmp_path, text))
    message = str(raised.value)
    assert "3 problem(s)" in message
    assert "training.learning_rat: no such key. Did you mean 'learning_rate'?" in message
    assert "training.batch_size" in message and "(got 0)" in message
    assert "'linear', 'cosine' or 'constant_with_warmup'" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (SMALL.replace("max_steps = 1", ""), "set epochs or max_steps"),
        (SMALL + '[export]\nserve_quantization = "Q5_K_M"\n', "is not one of"),
        (SMALL + "[lora]\nr = 0\n", "lora.r"),
        (SMALL.replace('name = "x"', 'name = "../x"'), "name: "),
        ("name = ", "cannot be read as TOML"),
        ("surprise = 1\n" + SMALL, "surprise: no such key"),
    ],
)
def test_refusals_name_the_key(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(write(tmp_path, text))
    assert part in str(raised.value)


def test_a_missing_file_says_where_the_presets_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="configs/"):
        load_config(tmp_path / "none.toml")


def test_the_hash_ignores_where_the_data_lies_and_sees_everything_else(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    plain = config_sha256(load_config(path))
    assert config_sha256(load_config(path, {"data.path": "elsewhere.jsonl"})) == plain
    assert config_sha256(load_config(path, {"training.learning_rate": 0.5})) != plain
    assert config_sha256(load_config(path, {"export.quantizations": ["Q8_0", "F16"]})) != plain


FULL = json.loads(load_config(CONFIGS / "phi3-mini.toml").model_dump_json(exclude_none=True))
OVERRIDES = st.sampled_from([{}, {"data.path": "d.jsonl"}, {"training.max_steps": 1}, {"name": "x"}])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(data=document(FULL | {"data": {"path": "a\0b"}}), overrides={})
@example(data=document(FULL | {"data": 5}), overrides={"data.path": "d.jsonl"})
@given(data=NOISE | ODD | exchanged(FULL).map(document), overrides=OVERRIDES)
def test_any_file_is_a_config_or_refused_with_its_name(tmp_path: Path, data: bytes, overrides: dict[str, Any]) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    try:
        config = load_config(path, overrides)
    except UserError as error:
        assert str(path) in str(error)
        assert "problem(s):\n  " in str(error) or "cannot be read as TOML" in str(error)
        str(error).encode()
    else:
        assert len(config_sha256(config)) == 64
        assert "\0" not in f"{config.data.path}{config.data.questions}{config.model.base}"
