"""One evaluation: ask both models, score, compare, summarise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from clients.ask import Answer, AskOptions
from clients.questions import Question
from clients.scorers import Score, score
from clients.statistics import Comparison, compare, holm, verdict, wilson


@dataclass(frozen=True)
class Scored:
    """A question with its answer and score; `score` is None where the request failed."""

    question: Question
    answer: Answer
    score: Score | None


def scored(questions: Sequence[Question], answers: Sequence[Answer]) -> list[Scored]:
    """Failed requests get no score: they are counted, never held against the model."""
    return [
        Scored(question, answer, None if answer.error else score(question, answer.text))
        for question, answer in zip(questions, answers, strict=True)
    ]


def figures(rows: Sequence[Scored]) -> dict[str, Any]:
    """Accuracy with its interval, coverage, failures, latency. A figure without data is None."""
    right = [row.score for row in rows if row.score]
    speeds = [speed for row in rows if row.score and (speed := row.answer.tokens_per_s) is not None]
    waits = [row.answer.ttft_ms for row in rows if row.score and row.answer.ttft_ms is not None]
    strict = sum(one.strict for one in right)
    low, high = wilson(strict, len(right)) if right else (None, None)
    return {
        "questions": len(rows),
        "failed": len(rows) - len(right),
        "right": strict,
        "strict": strict / len(right) if right else None,
        "strict_low": low,
        "strict_high": high,
        "coverage": sum(one.coverage for one in right) / len(right) if right else None,
        "ttft_ms_p50": median(waits) if waits else None,
        "tokens_per_s_p50": median(speeds) if speeds else None,
    }


def summarise(base: Sequence[Scored], tuned: Sequence[Scored]) -> dict[str, Any]:
    """Figures of both models, overall and by category, with the paired comparison."""
    categories = list(dict.fromkeys(row.question.category for row in base))
    by_category = {}
    for name in categories:
        mine = [row for row in base if row.question.category == name]
        theirs = [row for row in tuned if row.question.category == name]
        by_category[name] = {"base": figures(mine), "tuned": figures(theirs), **_compared(mine, theirs)}
    tested = {name: part["comparison"]["p_value"] for name, part in by_category.items() if part["comparison"]}
    for name, corrected in holm(tested).items():
        by_category[name]["comparison"]["p_value_holm"] = corrected
    overall = _compared(base, tuned)
    said = (
        verdict(Comparison(**overall["comparison"])) if overall["comparison"] else "No question was answered by both."
    )
    return {"verdict": said, "base": figures(base), "tuned": figures(tuned), **overall, "by_category": by_category}


def _compared(base: Sequence[Scored], tuned: Sequence[Scored]) -> dict[str, Any]:
    """Over the questions that both models answered."""
    pairs = [(a.score.strict, b.score.strict) for a, b in zip(base, tuned, strict=True) if a.score and b.score]
    if not pairs:
        return {"comparison": None}
    return {"comparison": asdict(compare([a for a, _ in pairs], [b for _, b in pairs]))}


def is_worse(summary: dict[str, Any], level: float) -> list[str]:
    """The gate: categories in which the tuned model is worse, after Holm's correction."""
    return [
        name
        for name, part in summary["by_category"].items()
        if part["comparison"] and part["comparison"]["difference"] < 0 and part["comparison"]["p_value_holm"] < level
    ]


def document(
    summary: dict[str, Any],
    base: Sequence[Scored],
    tuned: Sequence[Scored],
    questions: Path,
    options: AskOptions,
    run: dict[str, Any] | None,
) -> dict[str, Any]:
    """report.json: everything that the pages show."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": summary,
        "questions": {"path": str(questions), "sha256": hashlib.sha256(questions.read_bytes()).hexdigest()},
        "options": asdict(options),
        "run": run,
        "answers": [_row(a, b) for a, b in zip(base, tuned, strict=True)],
    }


def _row(base: Scored, tuned: Scored) -> dict[str, Any]:
    question = asdict(base.question)
    return {**question, "base": _side(base), "tuned": _side(tuned)}


def _side(row: Scored) -> dict[str, Any]:
    answer = asdict(row.answer) | {"tokens_per_s": row.answer.tokens_per_s}
    return answer | {"score": asdict(row.score) if row.score else None}
