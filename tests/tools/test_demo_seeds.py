"""The comparison of two backends over several seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.demo_seeds import Right, difference, percent


def right(*counts: int) -> Right:
    """A seed for each count of questions that are right, the first ones of the set."""
    names = [f"api-{number:03}" for number in range(1, 200)]
    return {str(seed): {"base": [], "tuned": names[:count]} for seed, count in enumerate(counts)}


def test_the_interval_is_that_of_the_questions_over_all_seeds() -> None:
    same = difference(right(20, 10), right(10, 20))
    assert same["difference_points"] == 0
    assert same["low_points"] < 0 < same["high_points"]
    worse = difference(right(20, 20), right(10, 10))
    assert worse["difference_points"] == pytest.approx(-100 * 10 / 146, abs=0.01)
    assert worse["high_points"] < 0
    half = difference(right(20, 20), right(10, 20))
    assert half["difference_points"] == pytest.approx(-100 * 5 / 146, abs=0.01)


def test_accuracy_is_of_all_questions() -> None:
    assert percent(right(73), 146) == {"base": {"0": 0.0}, "tuned": {"0": 50.0}}
