"""The plan at work: checked before a training, and a cheaper one taken, once, when memory runs out all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import Base, UserError
from trainer.config import TrainConfig
from trainer.machine import compute_device, free_memory_bytes, gpu_name, resident_bytes
from trainer.out_of_memory import first_line, give_back, is_out_of_memory
from trainer.plan import GIB, Place
from trainer.plan_data import counted
from trainer.plan_fit import as_text, changed, differences
from trainer.plan_report import Report, make_report, remedy_lines, resolved
from trainer.plan_shape import find_shape

if TYPE_CHECKING:
    from trainer.finetune import Finetuned
    from trainer.render import Example

CERTAIN = 0.85  # of the prediction: what it may be off by on a CPU is 15%
REMEMBERED = "cheaper-plan.json"

Say = Callable[[str], None]


@dataclass
class Planned:
    """The prediction for one training. `report` is None for a model that plans are not made for."""

    report: Report | None
    changes: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def for_manifest(self) -> dict[str, Any]:
        """What was predicted, and what was changed after memory ran out."""
        predicted = {"predicted_peak_bytes": self.report.proposal.peak.bytes} if self.report else {}
        if self.changes:
            return {**predicted, "changed_after_out_of_memory": self.changes, "out_of_memory": self.reason}
        return predicted


def predict(config: TrainConfig, backend: str, base: Base, examples: Sequence[Example]) -> Report:
    """The plan of these very rows, against the memory that is free. Raises UserError for a model that has no plans."""
    device = compute_device()
    shape = find_shape(str(base.folder("hf")), base.path.parent)
    available = free_memory_bytes(config.training.processes)
    if device == "cpu" and config.training.processes == 1:  # it trains in this process
        available += resident_bytes()
    data = counted(config, examples)
    return make_report(resolved(config, device, device), shape, Place(device, backend), data, available, gpu_name())


def check(
    config: TrainConfig, backend: str, base: Base, examples: Sequence[Example], say: Say, *, ignore: bool = False
) -> Planned:
    """Compare the predicted peak with the memory that is free. Warns where it may not be enough.

    Raises UserError, unless `ignore`, where it is not enough even if the prediction is 15% too high.
    """
    try:
        report = predict(config, backend, base, examples)
    except UserError as error:
        say(f"memory is not planned: {error}")
        return Planned(None)
    needed, available = report.proposal.peak.bytes, report.limit_bytes or 0
    said = _said(report, available)
    if CERTAIN * needed > available and not ignore:
        remedies = "\n".join(remedy_lines(report))
        raise UserError(
            f"{said}\n{remedies}\n--ignore-plan trains all the same; end other programs, or change the config."
        )
    if needed > available:
        say("\n".join([f"warning: {said}", *remedy_lines(report)]))
    else:
        say(said)
    return Planned(report)


def _said(report: Report, available: int) -> str:
    peak = report.proposal.peak.bytes
    verb = "fits into" if peak <= available else "does not fit into"
    count = report.config.training.processes
    whose = f" of each of {count} processes" if count > 1 else ""
    return f"plan: {peak / GIB:.2f} GiB at the peak{whose}, which {verb} the {available / GIB:.2f} GiB that are free"


def train_within_memory(
    config: TrainConfig, planned: Planned, work: Path, say: Say, run: Callable[[TrainConfig], Finetuned]
) -> Finetuned:
    """`run(config)`; when memory runs out, once more with a cheaper plan of the same effective batch.

    The next start of the same training takes the cheaper plan at once. Raises UserError when that is not enough.
    """
    if remembered := _recall(work):
        planned.changes, planned.reason = remembered["changes"], remembered["reason"]
        say(f"this training ran out of memory before, so it continues with {as_text(planned.changes)}")
    wanted = changed(config, planned.changes)
    try:
        return run(wanted)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    give_back()
    changes = {} if remembered else _cheaper(config, planned)
    if not changes:
        raise UserError(_advice(reason, planned))
    planned.changes, planned.reason = changes, reason
    say(f"out of memory ({reason}); once more, from the last checkpoint, with {as_text(planned.changes)}")
    _remember(work, planned)
    try:
        return run(changed(config, changes))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    raise UserError(_advice(reason, planned))


def _cheaper(config: TrainConfig, planned: Planned) -> dict[str, Any]:
    if planned.report:
        decided = planned.report.config
        proposal = planned.report.planner.cheaper(decided)
        return differences(decided, proposal.config) if proposal else {}
    training = config.training  # an unknown model: half the batch, the same effective one
    if training.batch_size % 2:
        return {}
    twice = training.gradient_accumulation_steps * 2
    return {"training.batch_size": training.batch_size // 2, "training.gradient_accumulation_steps": twice}


def _advice(reason: str, planned: Planned) -> str:
    tried = f" also with {as_text(planned.changes)}" if planned.changes else ""
    lines = "\n" + "\n".join(remedy_lines(planned.report)) if planned.report else ""
    return (
        f"Memory ran out{tried}: {reason}. Nothing was published; checkpoints are kept. End other programs, take "
        f"shorter rows (model.max_length_tokens) or a smaller base model.{lines}"
    )


def _remember(work: Path, planned: Planned) -> None:
    work.mkdir(parents=True, exist_ok=True)
    (work / REMEMBERED).write_text(json.dumps({"changes": planned.changes, "reason": planned.reason}))


def _recall(work: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((work / REMEMBERED).read_text())
    except (OSError, ValueError):
        return None
    return found
