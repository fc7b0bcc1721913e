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
