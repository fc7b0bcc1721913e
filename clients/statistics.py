"""Paired statistics: the same questions were asked to both models, and the arithmetic uses that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05
RESAMPLES = 10_000
SEED = 3407


@dataclass(frozen=True)
class Comparison:
    """A model minus its reference, in accuracy: the difference, its 95% interval, the exact p-value.

    `p_value` is two-sided; `p_worse` is of the one-sided test that the model is worse, which the gate uses.
    """

    questions: int
    difference: float
    low: float
    high: float
    p_value: float
    only_tuned: int
    only_base: int
    p_worse: float = 1.0


def wilson(right: int, total: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927), as scipy computes it. Raises ValueError for no answers."""
    from scipy.stats import binomtest

    if total < 1:
        raise ValueError("no answers, so no interval")
    interval = binomtest(right, total).proportion_ci(confidence_level=1 - LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def share_interval(rates: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean share right, one rate a question: Wilson where every question was asked once.

    Several answers to one question resemble each other, so then questions are resampled, not answers.
    """
    if all(rate in (0.0, 1.0) for rate in rates):
        return wilson(int(sum(rates)), len(rates))
    return _bootstrap(rates, (0.0, 1.0))


def mean_interval(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """95% interval of the mean of values that lie between `low` and `high`. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values, so no interval")
    return _bootstrap(values, (low, high))


def compare(base: Sequence[float], tuned: Sequence[float]) -> Comparison:
    """Paired bootstrap of the difference and the exact McNemar test (1947); with several answers to a question
    (rates between 0 and 1) its generalisation, the sign-flip permutation test.

    `base[i]` and `tuned[i]` answer the same question. Raises ValueError for no pairs.
    """
    import numpy as np

    if len(base) == 0 or len(base) != len(tuned):
        raise ValueError("pairs of answers are needed")
    differences = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    low, high = _bootstrap(differences.tolist(), (-1.0, 1.0))
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    p_value, p_worse = _sign_flip(differences, better, worse)
    return Comparison(len(base), float(differences.mean()), low, high, p_value, better, worse, p_worse)


def _bootstrap(values: Sequence[float], ends: tuple[float, float]) -> tuple[float, float]:
    """Percentile interval of the mean (Efron and Tibshirani 1993) over resampled values.

    Half an observation at either end of the scale is added, after Bonett and Price (2012): without it, 20 wins of 20
    would give an interval of no width, and intervals near the ends contain the truth far less often than they say.
    Equal values are drawn together, so memory does not grow with the number of values.
    """
    import numpy as np

    distinct, counts = np.unique(np.concatenate([values, ends]), return_counts=True)
    weights = counts.astype(float)
    for end in ends:
        weights[np.searchsorted(distinct, end)] -= 0.5
    return _resampled(tuple(distinct.tolist()), tuple(weights.tolist()))


def _resampled(distinct: tuple[float, ...], weights: tuple[float, ...]) -> tuple[float, float]:
    """95% interval of the mean of resamples of the `distinct` values, which occurred `weights` times."""
    import numpy as np

    total = round(sum(weights))
    draws = np.random.default_rng(SEED).multinomial(total, np.asarray(weights) / total, RESAMPLES)
    low, high = np.quantile(draws @ np.asarray(distinct) / total, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _sign_flip(differences: np.ndarray, better: int, worse: int) -> tuple[float, float]:
    """Two-sided p-value, and the one-sided one of being worse."""
    import numpy as np
    from scipy.stats import permutation_test

    if not better + worse:
        return 1.0, 1.0
    if np.isin(differences, (-1.0, 0.0, 1.0)).all():
        return _mcnemar(better, worse)
    pairs = (differences[differences != 0],)
    found = (
        permutation_test(
            pairs, np.mean, permutation_type="samples", n_resamples=RESAMPLES, alternative=kind, rng=SEED, axis=-1
        )
        for kind in ("two-sided", "less")
    )
    two_sided, less = (float(test.pvalue) for test in found)
    return two_sided, less


def _mcnemar(better: int, worse: int) -> tuple[float, float]:
    """The exact test of discordant pairs: two-sided, and one-sided for being worse."""
    from scipy.stats import binomtest

    tests = (binomtest(better, better + worse, alternative=kind) for kind in ("two-sided", "less"))
    two_sided, less = (float(test.pvalue) for test in tests)
    return two_sided, less


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979) over several comparisons."""
    ordered = sorted(p_values, key=p_values.__getitem__)
    corrected, highest = {}, 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p_values[name]))
        corrected[name] = highest
    return corrected


def needed_questions(found: Comparison, effect: float = 0.1, power: float = 0.8) -> int:
    """Pairs that show a true difference of `effect` with `power` (Connor 1987, McNemar's test).

    The share of discordant pairs is taken from what was seen, and at least `effect`.
    """
    from scipy.stats import norm

    discordant = max((found.only_tuned + found.only_base) / found.questions, effect)
    alpha, beta = norm.ppf(1 - LEVEL / 2), norm.ppf(power)
    root = alpha * discordant**0.5 + beta * (discordant - effect**2) ** 0.5
    return int(-(-(root**2) // effect**2))
