"""`training.plan = "fastest"`: of the plans that fit, the one whose real steps take the least time here.

The prediction leaves out what does not fit and what is certainly slower; the rest is tried for a few steps, once for
each kind of training on this machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelstore import UserError
from trainer.config import TrainConfig
from trainer.finetune import Stopped
from trainer.machine import compute_device, precision
from trainer.measured_steps import Trial
from trainer.out_of_memory import give_back, is_out_of_memory
from trainer.plan_check import predict
from trainer.plan_data import typical_rows
from trainer.plan_fit import LESS, Proposal, changed
from trainer.plan_remembered import (
    AS_WRITTEN,
    Candidate,
    Choice,
    file_of,
    kind_of,
    recall,
    recall_run,
    remember,
    remember_run,
)
from trainer.plan_report import Report
from trainer.plan_time import steps_of

if TYPE_CHECKING:
    from trainer.render import Example

# Computing the blocks again is certain work, 1.5 times theirs. What a pass over the weights costs, and so which batch
# and precision is faster, is assumed (plan_time.PASS_TOKENS): those plans differ by less, and are tried. So is
# recomputation in a model that is mostly logits, where it adds less.
IN_DOUBT = 1.25
TRIED = 4  # plans at most: each loads the base model once
STEPS = 6  # of each; the first is left out, and the median of five bears two that were disturbed

Say = Callable[[str], None]


def choose_plan(
    config: TrainConfig, trial: Trial, examples: Sequence[Example], cache: Path, work: Path, say: Say
) -> Choice:
    """The plan to train with. What was chosen for the run in `work` stays; what `cache` knows is not tried again.

    Raises Stopped when it was asked to stop while it tried plans.
    """
    if config.training.plan == "as_written":
        return AS_WRITTEN
    if choice := recall_run(work):
        say(f"plan: {choice.said()}, with which this run began")
        return choice
    try:
        report = predict(_start(config), trial.backend.name, trial.base, examples)
    except UserError as error:
        choice = Choice(why=f"not predicted: {error}")
    else:
        choice = _choose(report, trial, typical_rows(config, examples, STEPS), cache, work, say)
    say(f"plan: {choice.said()}; {choice.why}")
    remember_run(work, choice)
    return choice


def _choose(report: Report, trial: Trial, rows: Sequence[Example], cache: Path, work: Path, say: Say) -> Choice:
    proposals = fitting(report)
    listed = shortlist(proposals)
    candidates = [Candidate.of(proposal) for proposal in listed]
    if len(candidates) == 1:
        return Choice(why="the prediction leaves no other", chosen=candidates[0])
    kind = kind_of(report, trial.backend.name, trial.base.id)
    file = file_of(kind)
    if known := recall(cache, kind, candidates):
        why = "remembered as the fastest of a training like this"
        return Choice(why=why, chosen=fastest(known), candidates=known, file=file)
    say(f"plan: {len(listed)} plans may be the fastest that fits, so {STEPS} steps of each are tried")
    tried = [_tried(proposal, report, trial, rows, work, say) for proposal in listed]
    remember(cache, kind, tried)
    if best := fastest(tried):
        return Choice(why=f"the fastest of {len(tried)} that were tried", chosen=best, candidates=tried, file=file)
    spare = Candidate.of(after_out_of_memory(proposals, listed))
    return Choice(why="memory ran out in all that were tried, and it needs less", chosen=spare, candidates=tried)


def _tried(
    proposal: Proposal, report: Report, trial: Trial, rows: Sequence[Example], work: Path, say: Say
) -> Candidate:
    """The candidate with its measured seconds; without where memory ran out."""
    candidate, seconds = Candidate.of(proposal), None
    stopped = Stopped(0, steps_of(report.config, report.data.rows) or 0)
    try:
        seconds = round(trial.run(proposal.config, rows, STEPS, within=work).seconds_per_step, 4)
    except Stopped:
        raise stopped from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    give_back()
    if trial.should_stop():  # at the last step
        raise stopped
    say(f"plan: tried {candidate.said()}: " + ("out of memory" if seconds is None else f"{seconds:.3g} s a step"))
    return candidate.measured(seconds)


def fitting(report: Report) -> list[Proposal]:
    """Plans of the same effective batch and precision that this machine can compute in, the fastest by the prediction
    first: those whose predicted peak fits, or the one that needs least where none does.
    """
    allowed = {report.config.model.weights}
    if report.place.device == "cuda" and importlib.util.find_spec("bitsandbytes"):
        allowed.add("4bit")
    found = [p for p in report.planner.alternatives(report.config) if p.config.model.weights in allowed]
    fits = [p for p in found if report.limit_bytes is None or p.peak.bytes <= report.limit_bytes]
    return fits or [min(found, key=lambda p: p.peak.bytes)]


def shortlist(proposals: Sequence[Proposal]) -> list[Proposal]:
    """What is worth a try: plans IN_DOUBT, the best of every precision and way to recompute before the second best."""
    least = min(p.operations for p in proposals)
    kinds: dict[tuple[str, str], list[Proposal]] = {}
    shares: set[tuple[str, str, tuple[int, int]]] = set()
    for proposal in proposals:
        model, training = proposal.config.model, proposal.config.training
        kind = model.weights, training.gradient_checkpointing
        if proposal.operations <= IN_DOUBT * least and (*kind, training.share()) not in shares:
            shares.add((*kind, training.share()))  # processes may split two batches into the same share
            kinds.setdefault(kind, []).append(proposal)
    in_turn = sorted(
        ((place, p.operations, p) for kind in kinds.values() for place, p in enumerate(kind)), key=lambda each: each[:2]
    )
    return [proposal for *_, proposal in in_turn[:TRIED]]


def fastest(measured: Sequence[Candidate]) -> Candidate | None:
    """The least seconds a step: all were measured on the same rows, so it has the least seconds a token too."""
    done = [candidate for candidate in measured if candidate.seconds_per_step is not None]
    return min(done, key=lambda candidate: candidate.seconds_per_step or 0, default=None)


def after_out_of_memory(proposals: Sequence[Proposal], tried: Sequence[Proposal]) -> Proposal:
    """The fastest by the prediction that needs clearly less than all in which memory ran out, else the least."""
    least = min(p.peak.bytes for p in tried)
    smallest = min(proposals, key=lambda p: p.peak.bytes)
    return next((p for p in proposals if p.peak.bytes <= LESS * least), smallest)


def _start(config: TrainConfig) -> TrainConfig:
    """What the alternatives are made from, whatever is written: on a GPU the 16 bits that it multiplies; all rows in
    one pass, because the columns of logits that these need bound those of every smaller batch.
    """
    rows = config.training.batch_size * config.training.gradient_accumulation_steps
    weights = precision("auto") if compute_device() == "cuda" else config.model.weights
    return changed(
        config,
        {
            "model.weights": weights,
            "training.gradient_checkpointing": "off",
            "training.batch_size": rows,
            "training.gradient_accumulation_steps": 1,
        },
    )
