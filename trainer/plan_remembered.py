"""What was chosen and measured, and where it is remembered: with one run, and for all trainings of its kind here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from modelstore.files import write_atomically
from trainer.config import TrainConfig
from trainer.machine import hardware, package_versions
from trainer.plan_fit import Proposal, changed
from trainer.plan_report import Report

RECOMPUTED = {"off": "nothing recomputed", "on": "blocks recomputed", "unsloth": "blocks recomputed and offloaded"}
CHOSEN = ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing")  # in [training]
DECISIVE = ("optimizer", "packing", "batches", "group_by_length", "processes")  # for a step's time, in [training]
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "unsloth", "unsloth_zoo", "bitsandbytes")
RUN_FILE = "plan.json"


class Candidate(BaseModel):
    """A plan; `seconds_per_step` is None where it was not tried, or ran out of memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    gradient_checkpointing: str
    batch_size: int
    gradient_accumulation_steps: int
    predicted_peak_bytes: int
    seconds_per_step: float | None = None

    @classmethod
    def of(cls, proposal: Proposal) -> Candidate:
        """Nothing is measured yet."""
        training = proposal.config.training
        return cls(
            weights=proposal.config.model.weights,
            predicted_peak_bytes=proposal.peak.bytes,
            **{name: getattr(training, name) for name in CHOSEN},
        )

    @property
    def plan(self) -> tuple[Any, ...]:
        """What is chosen, without what was predicted and measured of it."""
        return self.weights, *(getattr(self, name) for name in CHOSEN)

    def measured(self, seconds_per_step: float | None) -> Candidate:
        return self.model_copy(update={"seconds_per_step": seconds_per_step})

    def said(self) -> str:
        how = RECOMPUTED[self.gradient_checkpointing]
        return f"{self.weights}, {how}, {self.batch_size} x {self.gradient_accumulation_steps} rows"


class Choice(BaseModel):
    """What to train with; `chosen` is None for the config as it is written. `file` of the cache has what was tried."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    why: str
    chosen: Candidate | None = None
    candidates: list[Candidate] = []
    file: str | None = None

    def applied_to(self, config: TrainConfig) -> TrainConfig:
        """The config with what was chosen in the place of what is written."""
        if self.chosen is None:
            return config
        decided = {f"training.{name}": getattr(self.chosen, name) for name in CHOSEN}
        return changed(config, {"model.weights": self.chosen.weights, **decided})

    def said(self) -> str:
        return self.chosen.said() if self.chosen else "as it is written"

    def for_manifest(self) -> dict[str, Any]:
        """Nothing where nothing was to be chosen."""
        return {} if self == AS_WRITTEN else self.model_dump(exclude={"file"})


AS_WRITTEN = Choice(why="as written")


def recall_run(work: Path) -> Choice | None:
    """What was chosen for the run that trains in `work`."""
    try:
        return Choice.model_validate_json((work / RUN_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def remember_run(work: Path, choice: Choice) -> None:
    """Before its training begins: it goes on with this plan, whatever is measured or free when it is resumed."""
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(work / RUN_FILE, choice.model_dump_json().encode())


class _Tried(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: dict[str, Any]
    candidates: list[Candidate]


def kind_of(report: Report, backend: str, base_id: str) -> dict[str, Any]:
    """What the speed of a step depends on but for the plan. Lengths are rounded up to a power of two."""
    config, machine, versions = report.config, hardware(), package_versions()
    training = config.training
    return {
        "hardware": [machine.get("gpu", machine["processor"]), machine["threads"]],
        "base": base_id,
        "backend": backend,
        "packages": {name: versions[name] for name in PACKAGES if name in versions},
        "weights": config.model.weights,
        "rows": training.batch_size * training.gradient_accumulation_steps,
        "longest_tokens": _power_of_two(report.planner.lengths.longest),
        "mean_tokens": _power_of_two(report.planner.mean_tokens),
        "lora": config.lora.model_dump(mode="json"),
        "training": {name: getattr(training, name) for name in DECISIVE},
    }


def recall(cache: Path, kind: dict[str, Any], candidates: Sequence[Candidate]) -> list[Candidate] | None:
    """The candidates with the seconds that they took before; None unless all were tried and one of them ran."""
    try:
        tried = _Tried.model_validate_json((cache / "plans" / file_of(kind)).read_bytes())
    except (OSError, ValueError):  # none, or a broken one, which is written anew
        return None
    seconds = {before.plan: before.seconds_per_step for before in tried.candidates}
    if any(candidate.plan not in seconds for candidate in candidates):
        return None
    known = [candidate.measured(seconds[candidate.plan]) for candidate in candidates]
    return known if any(candidate.seconds_per_step for candidate in known) else None


def remember(cache: Path, kind: dict[str, Any], candidates: Sequence[Candidate]) -> None:
    """For the next training of this kind."""
    path = cache / "plans" / file_of(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _Tried(kind=kind, candidates=list(candidates)).model_dump_json(indent=1).encode())


def forget(cache: Path, choice: Choice) -> None:
    """Memory ran out in what was chosen: the next training of that kind knows it, as if it had in the trial."""
    if choice.file is None or choice.chosen is None:  # nothing was tried
        return
    path, plan = cache / "plans" / choice.file, choice.chosen.plan
    try:
        tried = _Tried.model_validate_json(path.read_bytes())
    except (OSError, ValueError):  # the cache was emptied
        return
    tried.candidates = [each.measured(None) if each.plan == plan else each for each in tried.candidates]
    write_atomically(path, tried.model_dump_json(indent=1).encode())


def file_of(kind: dict[str, Any]) -> str:
    """Its name below plans/ in the cache."""
    return f"{hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]}.json"


def _power_of_two(tokens: float) -> int:
    return 1 << (round(tokens) - 1).bit_length()
