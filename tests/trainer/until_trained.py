"""The pipeline up to the end of a training: export and verification have tests of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modelstore import Store
from trainer import pipeline, plan_check
from trainer.config import TrainConfig
from trainer.progress import Reporter


class Enough(Exception):
    """The training is over."""


def losses(store: Store) -> list[float]:
    (log,) = (store.path / "work").glob("*/training.jsonl")
    return [json.loads(line)["loss"] for line in log.open()]


def train(
    wish: TrainConfig,
    store: Store,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Returns what was trained with which config, and what the manifest would be told of the plan."""
    seen: dict[str, Any] = {}

    def within_memory(config: TrainConfig, planned: Any, *rest: Any) -> Any:
        seen["config"] = config
        seen["tuned"] = plan_check.train_within_memory(config, planned, *rest)
        seen["manifest"] = planned.for_manifest()
        raise Enough

    monkeypatch.setattr(pipeline, "train_within_memory", within_memory)
    report = Reporter()
    monkeypatch.setattr(report, "say", said.append)
    with pytest.raises(Enough):
        pipeline.train(wish, store, report, should_stop, again=False)
    return seen
