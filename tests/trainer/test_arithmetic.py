"""Which arithmetic a training asks of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.backends import recipe
from trainer.config import TrainConfig


@pytest.mark.parametrize(
    ("weights", "card_has_bf16", "asked"),
    [
        ("auto", True, (True, False)),
        ("4bit", True, (True, False)),
        ("bf16", True, (True, False)),
        ("4bit", False, (False, True)),
        ("fp32", True, (False, False)),
        ("fp32", False, (False, False)),
    ],
)
def test_only_fp32_weights_are_multiplied_in_fp32(
    weights: str, card_has_bf16: bool, asked: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(recipe, "multiplies_bf16", lambda: card_has_bf16)
    config = TrainConfig.model_validate(
        {
            "name": "tiny",
            "model": {"base": "hub:some/model", "weights": weights},
            "data": {"path": "rows.jsonl"},
            "training": {"max_steps": 1},
        }
    )
    settings = recipe._settings(config, Path("out"), evaluates=False)
    assert (settings["bf16"], settings["fp16"]) == asked
