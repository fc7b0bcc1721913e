"""Intervals cover what they say, and the gate raises as few false alarms as it says."""

from __future__ import annotations

import numpy as np
import pytest

from clients import statistics
from clients.statistics import Comparison, compare, holm, verdict, wilson


def test_wilson_against_published_values() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    with pytest.raises(ValueError, match="no answers"):
        wilson(0, 0)


def test_wilson_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for right in rng.binomial(120, 0.8, 2000):
        low, high = wilson(int(right), 120)
        covered.append(low <= 0.8 <= high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_paired_bootstrap_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(2000):  # truth: both right 30%, only tuned 40%, only base 10%: difference 30 points
        kind = rng.choice(4, 120, p=[0.3, 0.4, 0.1, 0.2])
        found = compare(list((kind == 0) | (kind == 2)), list(kind <= 1))
        covered.append(found.low <= 0.3 <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_mcnemar_raises_at_most_the_stated_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 10)
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(2000):  # no difference: 20% only tuned, 20% only base
        kind = rng.choice(3, 60, p=[0.6, 0.2, 0.2])
        alarms += compare(list(kind == 1), list(kind == 2)).p_value < 0.05
    assert alarms / 2000 <= 0.05


def test_mcnemar_is_the_exact_binomial_test() -> None:
    found = compare([True] * 2 + [False] * 10, [False] * 2 + [True] * 10)
    assert (found.only_tuned, found.only_base) == (10, 2)
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    with pytest.raises(ValueError, match="pairs"):
        compare([], [])


def test_holm_steps_down() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({}) == {}


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (Comparison(40, 0.5, 0.3, 0.7, 0.001, 20, 0), "is better than the base model by 50.0 points"),
        (Comparison(40, -0.5, -0.7, -0.3, 0.001, 0, 20), "is worse than the base model by 50.0 points"),
        (Comparison(40, 0.02, -0.1, 0.1, 0.9, 6, 5), "Cannot tell the two models apart"),
    ],
)
def test_the_verdict_is_a_plain_sentence(found: Comparison, part: str) -> None:
    assert part in verdict(found)
    if found.p_value > 0.05:
        assert "more questions would be needed" in verdict(found)
