"""Tells a training that has broken down from one that is merely noisy, and says what was seen.

A uniform guess over a vocabulary of V tokens has the loss ln V, so a model above it knows less than nothing. An
instruct model begins far below; a fine-tune that climbs there has lost its base. Pairs of answers begin at a loss that
is known, as the untrained adapter prefers neither; some are hard, so more is allowed above it. A single bad line may
pass, as spikes do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trainer.config import TrainingConfig

ABOVE_GUESSING = 1.1  # times ln V
ABOVE_UNTRAINED = 5  # times the loss of pairs that nothing was learnt of: with "sigmoid" a margin of -3.4
ABOVE_BEST = 1.5  # times the lowest mean loss so far: a base that begins at ln V is not exploding
LINES = 2  # of the log, one after the other


class Diverged(Exception):
    """The loss is not a number any more, or grows without end. The last good checkpoint stays."""


@dataclass
class LossGuard:
    """Sees every line of the log. While `is_suspect`, no checkpoint is worth keeping."""

    most: float  # a loss up to which nothing is wrong
    comparison: str  # the loss of a model that knows nothing, for the message
    verdict: str = ""
    lowest: float = math.inf
    lowest_step: int = 0
    _bad: list[tuple[int, float]] = field(default_factory=list)

    @property
    def is_suspect(self) -> bool:
        """Whether the newest line was bad."""
        return bool(self._bad)

    def see(self, step: int, loss: float) -> None:
        """`loss` is the mean since the line before, in nats a token."""
        if not math.isfinite(loss):
            self._bad.append((step, loss))
            self.verdict = f"The loss is not a number at step {step}"
        elif loss > max(self.most, ABOVE_BEST * self.lowest):
            self._bad.append((step, loss))
            if len(self._bad) >= LINES:
                self.verdict = f"The loss is {loss:.4g} at step {step} and grows: {self.comparison}"
        else:
            self._bad.clear()
            if loss < self.lowest:
                self.lowest, self.lowest_step = loss, step

    def diagnosis(self, learning_rate: float, warmup_steps: int, gradient_norm: float, checkpoint: str) -> str:
        """What was seen and what to change. `gradient_norm` is the newest, before clipping."""
        if self.lowest_step:
            best = f"the lowest was {self.lowest:.4g} at step {self.lowest_step}"
            advice = (
                f"Lower training.learning_rate (now {learning_rate:g}) or raise training.warmup_steps "
                f"(now {warmup_steps})"
            )
        else:
            best = "it was never good"
            advice = "Look at the base model's weights, or take model.weights in bf16 or fp32"
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there was no checkpoint yet"
        return (
            f"{self.verdict or 'The adapter holds values that are not numbers'}; {best}, and the gradient's norm is "
            f"{gradient_norm:.3g}. {advice}, then train again. Nothing was published; {kept}."
        )


def loss_guard(training: TrainingConfig, vocabulary: int) -> LossGuard:
    """For the loss that this training has."""
    if training.method == "dpo":
        untrained = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 1 / (2 * training.dpo_beta) ** 2}[training.dpo_loss]
        return LossGuard(ABOVE_UNTRAINED * untrained, f"an untrained adapter would have {untrained:.4g}")
    guess = math.log(vocabulary)
    return LossGuard(ABOVE_GUESSING * guess, f"a guess among all {vocabulary} tokens would have {guess:.4g}")
