"""When a loss counts as broken down."""

from __future__ import annotations

import pytest

from trainer.config import TrainingConfig
from trainer.divergence import loss_guard


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([2.0, 1.5, 1.0], ""),
        ([2.0, 7.0, 1.9], ""),  # a spike
        ([2.0, 7.0, 7.5], "grows"),
        ([5.9, 6.0, 6.1, 6.2], ""),  # a base that knows nothing yet
        ([2.0, 3.0, 4.0], ""),  # worse, and still better than a guess
        ([2.0, float("nan")], "not a number"),
        ([2.0, float("inf")], "not a number"),
    ],
)
def test_what_counts_as_broken_down(losses: list[float], verdict: str) -> None:
    guard = loss_guard(TrainingConfig(max_steps=1), vocabulary=354)  # ln 354 = 5.87
    for step, loss in enumerate(losses, 1):
        guard.see(step, loss)
    assert (verdict in guard.verdict) if verdict else not guard.verdict


@pytest.mark.parametrize(
    ("loss", "losses", "verdict"),
    [
        ("sigmoid", [0.69, 1.5, 1.2, 0.6], ""),  # hard pairs
        ("sigmoid", [0.69, 0.5, 3.6, 3.8], "an untrained adapter would have 0.6931"),
        ("ipo", [25.0, 60.0, 80.0], ""),
        ("ipo", [25.0, 130.0, 150.0], "would have 25"),
        ("hinge", [1.0, 6.0, 7.0], "would have 1"),
    ],
)
def test_pairs_are_compared_with_an_untrained_adapter(loss: str, losses: list[float], verdict: str) -> None:
    training = TrainingConfig.model_validate({"method": "dpo", "dpo_loss": loss, "max_steps": 1})
    guard = loss_guard(training, vocabulary=354)
    for step, value in enumerate(losses, 1):
        guard.see(step, value)
    assert (verdict in guard.verdict) if verdict else not guard.verdict
