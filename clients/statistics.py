"""Paired statistics: the same questions were asked to both models, and the arithmetic uses that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05
RESAMPLES = 10_000
SEED = 3407


@dataclass(frozen=True)
class Comparison:
    """Tuned minus base, in accuracy: the difference, its 95% interval, the exact p-value, corrected where several."""

    questions: int
    difference: float
    low: float
    high: float
    p_value: float
    only_tuned: int
    only_base: int


def wilson(right: int, total: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927), as scipy computes it. Raises ValueError for no answers."""
    from scipy.stats import binomtest

    if total < 1:
        raise ValueError("no answers, so no interval")
    interval = binomtest(right, total).proportion_ci(confidence_level=1 - LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def compare(base: Sequence[bool], tuned: Sequence[bool]) -> Comparison:
    """Paired bootstrap of the difference (Efron and Tibshirani 1993, percentile) and exact McNemar test (1947).

    `base[i]` and `tuned[i]` answer the same question. Raises ValueError for no pairs.
    """
    import numpy as np
    from scipy.stats import binomtest

    if not base or len(base) != len(tuned):
        raise ValueError("pairs of answers are needed")
    differences = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    picks = np.random.default_rng(SEED).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.quantile(differences[picks].mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    p_value = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Comparison(len(base), float(differences.mean()), float(low), float(high), p_value, better, worse)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979) over several comparisons."""
    ordered = sorted(p_values, key=p_values.__getitem__)
    corrected, highest = {}, 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p_values[name]))
        corrected[name] = highest
    return corrected


def verdict(found: Comparison) -> str:
    """What may be concluded, in a sentence."""
    points = (
        f"{100 * abs(found.difference):.1f} points (95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
    proof = f"on {found.questions} paired questions, exact McNemar {_p(found.p_value)}"
    if found.p_value < LEVEL:
        word = "better" if found.difference > 0 else "worse"
        return f"The tuned model is {word} than the base model by {points} {proof}."
    more = max(0, needed_questions(found) - found.questions)
    tail = f" About {more} more questions would be needed to see a difference of 10 points." if more else ""
    return f"Cannot tell the two models apart: the difference is {points} {proof}.{tail}"


def needed_questions(found: Comparison, effect: float = 0.1, power: float = 0.8) -> int:
    """Pairs that show a true difference of `effect` with `power` (Connor 1987, McNemar's test).

    The share of discordant pairs is taken from what was seen, and at least `effect`.
    """
    from scipy.stats import norm

    discordant = max((found.only_tuned + found.only_base) / found.questions, effect)
    alpha, beta = norm.ppf(1 - LEVEL / 2), norm.ppf(power)
    root = alpha * discordant**0.5 + beta * (discordant - effect**2) ** 0.5
    return int(-(-(root**2) // effect**2))


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"
