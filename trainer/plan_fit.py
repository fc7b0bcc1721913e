"""Other plans with the same effective batch, and what each needs: for a card that is too small, and after an
out-of-memory error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.config import TrainConfig
from trainer.plan import Lengths, Peak, Place, predict_peak
from trainer.plan_shape import Shape
from trainer.plan_time import step_operations

SHORTEST = 64  # tokens; below it nothing is proposed
LESS = 0.85  # an out-of-memory error is answered by a plan that needs at most this share


@dataclass(frozen=True)
class Proposal:
    """A config, its predicted peak and its cost in floating-point operations a step, both of each process."""

    config: TrainConfig
    peak: Peak
    operations: float


@dataclass(frozen=True)
class Planner:
    """What is the same for all plans of one training."""

    shape: Shape
    place: Place
    lengths: Lengths
    mean_tokens: float

    def propose(self, config: TrainConfig) -> Proposal:
        lengths = self._cut(config)
        mean = min(self.mean_tokens, lengths.longest)
        share = of_one_process(config)
        operations = step_operations(share, self.shape, self.place, lengths, mean)
        return Proposal(config, predict_peak(share, self.shape, self.place, lengths), operations)

    def _cut(self, config: TrainConfig) -> Lengths:
        limit = config.model.max_length_tokens
        return Lengths(min(limit, self.lengths.longest), min(limit, self.lengths.answer_columns))

    def alternatives(self, config: TrainConfig, *, precision: bool = True) -> list[Proposal]:
        """All plans of the same effective batch and length, the fastest first. `precision` may change the weights."""
        found = [self.propose(other) for other in _variants(config, self.place, precision)]
        return sorted(found, key=lambda proposal: (proposal.operations, proposal.peak.bytes))

    def fastest_within(self, config: TrainConfig, limit_bytes: int) -> Proposal | None:
        """The fastest plan that fits; shorter rows only where nothing else helps."""
        while True:
            for proposal in self.alternatives(config):
                if proposal.peak.bytes <= limit_bytes:
                    return proposal
            length = min(config.model.max_length_tokens, self.lengths.longest) // 2
            if length < SHORTEST:
                return None
            config = changed(config, {"model.max_length_tokens": length})

    def cheaper(self, config: TrainConfig) -> Proposal | None:
        """The fastest plan that needs clearly less memory, with the same weights, effective batch and rows."""
        now = self.propose(config).peak.bytes
        return next((p for p in self.alternatives(config, precision=False) if p.peak.bytes <= LESS * now), None)

    def remedies(self, config: TrainConfig) -> list[Proposal]:
        """One change at a time: recompute, 4 bits, one row a pass, half the length."""
        training, wishes = config.training, list[dict[str, Any]]()
        if training.gradient_checkpointing == "off":
            wishes.append({"training.gradient_checkpointing": _recompute(self.place)})
        if self.place.device == "cuda" and config.model.weights != "4bit":
            wishes.append({"model.weights": "4bit"})
        if training.batch_size > 1:
            effective = training.batch_size * training.gradient_accumulation_steps
            wishes.append({"training.batch_size": 1, "training.gradient_accumulation_steps": effective})
        if (half := min(config.model.max_length_tokens, self.lengths.longest) // 2) >= SHORTEST:
            wishes.append({"model.max_length_tokens": half})
        return [self.propose(changed(config, wish)) for wish in wishes]


def _recompute(place: Place) -> str:
    return "unsloth" if place.backend == "unsloth" and place.device == "cuda" else "on"


def _variants(config: TrainConfig, place: Place, precision: bool) -> Iterator[TrainConfig]:
    training = config.training
    effective = training.batch_size * training.gradient_accumulation_steps
    weights = dict.fromkeys((config.model.weights, *(("bf16", "4bit") if precision and place.device == "cuda" else ())))
    for precise in weights:
        for recompute in dict.fromkeys(("off", "on", _recompute(place), training.gradient_checkpointing)):
            for batch in (size for size in range(1, effective + 1) if effective % size == 0):
                yield changed(
                    config,
                    {
                        "model.weights": precise,
                        "training.gradient_checkpointing": recompute,
                        "training.batch_size": batch,
                        "training.gradient_accumulation_steps": effective // batch,
                    },
                )


def of_one_process(config: TrainConfig) -> TrainConfig:
    """What each of the processes does, as a training of its own."""
    rows, passes = config.training.share()
    share = {"batch_size": rows, "gradient_accumulation_steps": passes, "processes": 1}
    return changed(config, {f"training.{key}": value for key, value in share.items()})


def changed(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """The config with some dotted keys replaced."""
    tree = config.model_dump()
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return TrainConfig.model_validate(tree)


def differences(before: TrainConfig, after: TrainConfig) -> dict[str, Any]:
    """Dotted keys whose values differ, with the new values."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {
        f"{section}.{key}": value
        for section, values in new.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if old[section][key] != value
    }


def as_text(values: dict[str, Any]) -> str:
    """Changed keys as they stand in a config."""
    return ", ".join(
        f"{key} = " + (f'"{value}"' if isinstance(value, str) else str(value)) for key, value in values.items()
    )
