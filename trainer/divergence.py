"""Tells a training that has broken down from one that is merely noisy, and says what was seen.

A uniform guess over a vocabulary of V tokens has the loss ln V, so a model above it knows less than nothing. An
instruct model begins far below; a fine-tune that climbs there has lost its base. A single bad line may pass, as
spikes do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

ABOVE_GUESSING = 1.1  # times ln V
ABOVE_BEST = 1.5  # times the lowest mean loss so far: a base that begins at ln V is not exploding
LINES = 2  # of the log, one after the other


class Diverged(Exception):
    """The loss is not a number any more, or grows without end. The last good checkpoint stays."""


@dataclass
class LossGuard:
    """Sees every line of the log. While `is_suspect`, no checkpoint is worth keeping."""

    vocabulary: int
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
        elif loss > max(ABOVE_GUESSING * math.log(self.vocabulary), ABOVE_BEST * self.lowest):
            self._bad.append((step, loss))
            if len(self._bad) >= LINES:
                self.verdict = (
                    f"The loss is {loss:.4g} at step {step} and grows: a guess among all {self.vocabulary} tokens "
                    f"would have {math.log(self.vocabulary):.4g}"
                )
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
