"""Intervals cover what they say, and the gate raises as few false alarms as it says."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from clients import evaluate, statistics
from clients.evaluate import Scored, gate, summarise
from clients.questions import Question
from clients.scorers import Score
from clients.statistics import Comparison, compare, holm, mean_interval, share_interval, wilson
from clients.verdicts import verdict


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Equal counts give equal intervals and p-values, so 2,000 evaluations need few of them computed."""
    for name in ("wilson", "_resampled", "_mcnemar"):
        monkeypatch.setattr(statistics, name, cache(getattr(statistics, name)))
    yield


def test_wilson_against_published_values() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    with pytest.raises(ValueError, match="no answers"):
        wilson(0, 0)


@pytest.mark.usefixtures("remembered")
def test_wilson_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for right in rng.binomial(120, 0.8, 2000):
        low, high = statistics.wilson(int(right), 120)
        covered.append(low <= 0.8 <= high)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize(
    ("questions", "shares"),
    [  # shares of questions that both answer, only tuned, only base, none: on average
        (120, (0.3, 0.4, 0.1, 0.2)),
        (48, (0.05, 0.8, 0.01, 0.14)),
        (48, (0.6, 0.1, 0.1, 0.2)),
    ],
)
def test_the_paired_bootstrap_covers_the_truth(
    monkeypatch: pytest.MonkeyPatch, questions: int, shares: tuple[float, ...]
) -> None:
    """Each evaluation has a truth of its own: with so few questions the differences that can be seen lie on a grid, and
    for one fixed truth the coverage depends on where the grid happens to lie (94 to 97.5%).
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 2000)
    rng = np.random.default_rng(2)
    covered = []
    for truth in rng.dirichlet(40 * np.array(shares), 2000):
        kind = rng.choice(4, questions, p=truth)
        found = compare((kind == 0) | (kind == 2), kind <= 1)
        covered.append(found.low <= truth[1] - truth[2] <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_intervals_of_pass_rates_cover_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(2000):  # questions differ: each has a pass rate of its own, 0.6 on average
        own = rng.beta(3, 2, 60)
        low, high = share_interval(list(rng.binomial(5, own) / 5))
        covered.append(low <= 0.6 <= high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_twenty_wins_of_twenty_leave_doubt() -> None:
    found = compare([0.0] * 20, [1.0] * 20)
    assert found.difference == 1.0 and 0.75 < found.low < 0.95 and found.high > 0.97
    low, high = mean_interval([4.0] * 10, 1, 5)
    assert 3 < low < 4 < high < 5
    with pytest.raises(ValueError, match="no values"):
        mean_interval([], 1, 5)


@pytest.mark.usefixtures("remembered")
def test_mcnemar_raises_at_most_the_stated_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 10)
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(2000):  # no difference: 20% only tuned, 20% only base
        kind = rng.choice(3, 60, p=[0.6, 0.2, 0.2])
        alarms += compare(list(kind == 1), list(kind == 2)).p_value < 0.05
    assert alarms / 2000 <= 0.05


QUESTIONS = [Question(str(n), "abc"[n // 40], "?", "a", ()) for n in range(120)]
ANSWERS = [[Scored(row, (), (Score(right, 1.0, (), ()),)) for right in (False, True)] for row in QUESTIONS]


def answered(rights: np.ndarray) -> list[Scored]:
    """Scored answers to 40 questions in each of three categories."""
    return [pair[int(right)] for pair, right in zip(ANSWERS, rights, strict=True)]


@pytest.mark.usefixtures("remembered")
def test_the_gate_raises_at_most_the_stated_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 2)  # the gate looks at neither intervals nor figures
    monkeypatch.setattr(evaluate, "figures", lambda _: {"failed": 0})
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(1000):  # no difference: 25% only tuned, 25% only base
        kind = rng.choice(3, 120, p=[0.5, 0.25, 0.25])
        alarms += not gate(summarise({"base": answered(kind == 1), "tuned": answered(kind == 2)}), 0.1)["passed"]
    assert 0.02 <= alarms / 1000 <= 0.1


def test_the_gate_sees_one_bad_category() -> None:
    base, tuned = np.ones(120, dtype=bool), np.ones(120, dtype=bool)
    tuned[80:100] = False
    found = gate(summarise({"base": answered(base), "tuned": answered(tuned)}))
    assert not found["passed"] and [name for name, one in found["categories"].items() if not one["passed"]] == ["c"]


def test_mcnemar_is_the_exact_binomial_test() -> None:
    found = compare([True] * 2 + [False] * 10, [False] * 2 + [True] * 10)
    assert (found.only_tuned, found.only_base) == (10, 2)
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    with pytest.raises(ValueError, match="pairs"):
        compare([], [])


def test_pass_rates_are_tested_by_flipping_signs() -> None:
    found = compare([0.2, 0.4, 0.0, 0.6, 0.2, 0.2], [0.8, 0.8, 0.6, 1.0, 0.6, 0.4])
    assert found.p_value == pytest.approx(2 / 2**6) and found.p_worse == 1.0
    assert "permutation" in verdict(found)


def test_holm_steps_down() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({}) == {}


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (Comparison(40, 0.5, 0.3, 0.7, 0.001, 20, 0), "is better than the base model by 50.0 points"),
        (Comparison(40, -0.5, -0.7, -0.3, 0.001, 0, 20), "is worse than the base model by 50.0 points"),
        (Comparison(40, 0.025, -0.1, 0.1, 0.9, 6, 5), "Cannot tell the tuned model from the base model"),
    ],
)
def test_the_verdict_is_a_plain_sentence(found: Comparison, part: str) -> None:
    assert part in verdict(found)
    if found.p_value > 0.05:
        assert "more would be needed" in verdict(found) and "with 40 questions" in verdict(found)
    assert "40 道" in verdict(found, "zh") and "模型 x" in verdict(found, "zh", "x")
