"""Scores what the models answered, compares each with the reference, and summarises."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any

from clients.answers import Answer
from clients.questions import Question
from clients.scorers import Score, score
from clients.statistics import LEVEL, compare, holm, share_interval
from clients.verdicts import NOTHING, verdict


@dataclass(frozen=True)
class Scored:
    """A question with a model's answers to it, one for each sample; a score is None where the request failed."""

    question: Question
    answers: tuple[Answer, ...]
    scores: tuple[Score | None, ...]

    @property
    def known(self) -> list[Score]:
        """The scores of the answers that came."""
        return [one for one in self.scores if one]

    @cached_property
    def rate(self) -> float | None:
        """Share of right answers among those that came; None where none came."""
        return fmean(one.strict for one in self.known) if self.known else None


def scored(questions: Sequence[Question], answers: Sequence[Answer]) -> list[Scored]:
    """Failed requests get no score: they are counted, never held against the model."""
    by_question: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_question[answer.question_id].append(answer)
    return [_scored(question, by_question[question.id]) for question in questions]


def _scored(question: Question, answers: Sequence[Answer]) -> Scored:
    scores = tuple(None if answer.error else score(question, answer.text) for answer in answers)
    return Scored(question, tuple(answers), scores)


def figures(rows: Sequence[Scored]) -> dict[str, Any]:
    """Accuracy with its interval, coverage, failures, length, latency. A figure without data is None."""
    rates = [row.rate for row in rows if row.rate is not None]
    known = [one for row in rows for one in row.known]
    came = [answer for row in rows for answer in row.answers if not answer.error]
    low, high = share_interval(rates) if rates else (None, None)
    return {
        "questions": len(rows),
        "answers": len(came),
        "failed": sum(len(row.answers) for row in rows) - len(came),
        "empty": sum(not answer.text.strip() for answer in came),
        "cut_off": sum(answer.finish_reason == "length" for answer in came),
        "right": sum(one.strict for one in known),
        "strict": _mean(rates),
        "strict_low": low,
        "strict_high": high,
        "coverage": _mean([one.coverage for one in known]),
        "refused": _mean([float(one.refused) for one in known]),
        "length_mean": _mean([one.length for one in known]),
        "density": _mean([one.density for one in known if one.density is not None]),
        "ttft_ms_p50": _median([answer.ttft_ms for answer in came]),
        "tokens_per_s_p50": _median([answer.tokens_per_s for answer in came]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _median(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return median(present) if present else None


def summarise(models: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """`models` holds the reference first, then `tuned`, then any other: each is compared with the reference.

    The shape is the one of two models, {base, tuned, comparison, verdict, by_category}; `others` holds the same for
    each further model under its name.
    """
    (_, base), (_, tuned), *others = models.items()
    summary = _against(base, tuned, "tuned")
    summary["others"] = {name: _against(base, rows, name) for name, rows in others}
    return summary


def _against(base: Sequence[Scored], tuned: Sequence[Scored], name: str) -> dict[str, Any]:
    by_category = {}
    for category in dict.fromkeys(row.question.category for row in base):
        mine, theirs = ([row for row in rows if row.question.category == category] for rows in (base, tuned))
        by_category[category] = _part(mine, theirs, name)
    compared = {category: part["comparison"] for category, part in by_category.items() if part["comparison"]}
    for field in ("p_value", "p_worse"):
        for category, corrected in holm({key: found[field] for key, found in compared.items()}).items():
            compared[category][f"{field}_holm"] = corrected
    return {**_part(base, tuned, name), "by_category": by_category}


def _part(base: Sequence[Scored], tuned: Sequence[Scored], name: str) -> dict[str, Any]:
    """Figures of both, and the comparison over the questions that both answered."""
    pairs = [(a.rate, b.rate) for a, b in zip(base, tuned, strict=True) if a.rate is not None and b.rate is not None]
    found = compare([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None
    return {
        "verdict": verdict(found, "en", name) if found else NOTHING["en"],
        "verdict_zh": verdict(found, "zh", name) if found else NOTHING["zh"],
        "base": figures(base),
        "tuned": figures(tuned),
        "comparison": asdict(found) if found else None,
    }


def gate(summary: dict[str, Any], level: float = LEVEL) -> dict[str, Any]:
    """Passed when everything was measured and the tuned model is worse in no category: one-sided exact test,
    Holm's correction, so that a model as good as its base fails with a probability of at most `level`.
    """
    categories = {}
    for name, part in summary["by_category"].items():
        found = part["comparison"]
        categories[name] = {
            "passed": bool(found) and found["p_worse_holm"] >= level,
            "questions": found["questions"] if found else 0,
            "difference": found["difference"] if found else None,
            "p_worse_holm": found["p_worse_holm"] if found else None,
        }
    failed = summary["base"]["failed"] + summary["tuned"]["failed"]
    passed = not failed and all(one["passed"] for one in categories.values())
    return {"passed": passed, "level": level, "failed_requests": failed, "categories": categories}
