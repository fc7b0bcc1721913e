"""Compares two models' probabilities at the same positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEAD = 0.5  # nats; below it the best token is a near-tie that rounding decides
FLOOR = -30.0  # natural log-probability that stands for zero


@dataclass(frozen=True)
class Agreement:
    """The second model against the first, over `positions` tokens of trained answers.

    top1: share of the decided positions (the first model's best token leads by LEAD nats) with the same best token.
    kl: mean divergence in nats. loss_added: mean negative log-likelihood of the answer, second minus first, in nats.
    """

    top1: float
    kl: float
    loss_added: float
    positions: int


def compare(reference: Sequence[Any], other: Sequence[Any], answers: Sequence[Sequence[int]]) -> Agreement:
    """Full distributions: tensors of log-probabilities, shape (answer tokens, vocabulary), one per probe."""
    tally = _Tally()
    for mine, theirs, ids in zip(reference, other, answers, strict=True):
        divergences = (mine.exp() * (mine - theirs)).sum(-1).tolist()
        for row, token in enumerate(ids):
            tally.add(mine[row], int(theirs[row].argmax()), divergences[row])
            tally.add_loss(float(mine[row][token]) - float(theirs[row][token]))
    return tally.agreement()


def compare_listed(reference: Sequence[Any], listed: Sequence[Any], answers: Sequence[Sequence[int]]) -> Agreement:
    """The second model lists only its most probable tokens with their log-probabilities.

    Both distributions are reduced to those tokens and one bucket for the rest. By the data-processing inequality
    (Cover and Thomas, Elements of Information Theory, 2.8) that divergence is a lower bound of the full one.
    The loss is compared where the answer's token is listed.
    """
    tally = _Tally()
    for mine, theirs, ids in zip(reference, listed, answers, strict=True):
        for row, (top, token) in enumerate(zip(theirs, ids, strict=True)):
            known = dict(top)
            tally.add(mine[row], max(known, key=known.__getitem__), _reduced_kl(mine[row], known))
            if token in known:
                tally.add_loss(float(mine[row][token]) - known[token])
    return tally.agreement()


class _Tally:
    """Running sums over positions."""

    def __init__(self) -> None:
        self.positions, self.decided, self.same, self.divergence = 0, 0, 0, 0.0
        self.losses: list[float] = []

    def add(self, mine: Any, their_best: int, divergence: float) -> None:
        first, second = mine.topk(2).values.tolist()
        self.positions += 1
        self.divergence += divergence
        if first - second >= LEAD:
            self.decided += 1
            self.same += int(mine.argmax()) == their_best

    def add_loss(self, difference: float) -> None:
        self.losses.append(difference)

    def agreement(self) -> Agreement:
        top1 = self.same / self.decided if self.decided else 1.0
        loss = sum(self.losses) / len(self.losses) if self.losses else float("inf")
        return Agreement(round(top1, 4), round(self.divergence / self.positions, 5), round(loss, 5), self.positions)


def _reduced_kl(mine: Any, known: dict[int, float]) -> float:
    total, mass_mine, mass_theirs = 0.0, 0.0, 0.0
    for token, theirs in known.items():
        own = float(mine[token])
        total += math.exp(own) * (own - max(theirs, FLOOR))
        mass_mine += math.exp(own)
        mass_theirs += math.exp(theirs)
    rest = max(0.0, 1.0 - mass_mine)
    if rest > 1e-9:
        total += rest * (math.log(rest) - math.log(max(1.0 - mass_theirs, math.exp(FLOOR))))
    return total
