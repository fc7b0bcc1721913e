"""report.json: everything that the pages show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from clients.evaluate import Scored
from clients.scorers import chosen
from clients.wordings import span

FORMAT = 1
SHOWN = 2000  # answers in a report; results.jsonl has them all


def document(
    summary: dict[str, Any],
    gate: dict[str, Any],
    rows: Mapping[str, Sequence[Scored]],
    asked: dict[str, Any],
    run: dict[str, Any] | None,
) -> dict[str, Any]:
    """The first model is the reference and the second the model in question. Questions whose outcome changed come
    first where there are too many to show.
    """
    base, tuned = list(rows.values())[:2]
    pairs = list(zip(base, tuned, strict=True))
    if len(pairs) > SHOWN:
        pairs.sort(key=lambda pair: (outcome(*pair) in ("both", "none"), outcome(*pair)))
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": summary,
        "gate": gate,
        "asked": asked,
        "run": run,
        "answers": [_row(*pair) for pair in pairs[:SHOWN]],
    }


def outcome(base: Scored, tuned: Scored) -> str:
    """won, lost, both, none or failed; with several samples by the larger share of right answers."""
    if base.rate is None or tuned.rate is None:
        return "failed"
    if base.rate != tuned.rate:
        return "won" if tuned.rate > base.rate else "lost"
    return "both" if tuned.rate == 1 else "none"


def _row(base: Scored, tuned: Scored) -> dict[str, Any]:
    question = asdict(base.question)
    return {**question, "outcome": outcome(base, tuned), "base": _side(base), "tuned": _side(tuned)}


def _side(row: Scored) -> dict[str, Any]:
    """The first answer in full with its marks, and the share of right ones."""
    if not row.answers:
        return {"text": "", "error": "not asked", "score": None, "rate": None, "marks": [], "samples": 0}
    answer, first = row.answers[0], row.scores[0]
    return asdict(answer) | {
        "tokens_per_s": answer.tokens_per_s,
        "score": asdict(first) if first else None,
        "rate": row.rate,
        "samples": len(row.answers),
        "marks": _marks(row, answer.text),
        "chosen": chosen(row.question, answer.text) if row.question.choices else "",
    }


def _marks(row: Scored, text: str) -> list[tuple[int, int, str]]:
    """Where key points ("said") and forbidden statements ("wrong") stand in the text; none overlaps another."""
    sought = [(wording, "wrong") for wording in row.question.forbidden]
    sought += [(wording, "said") for point in row.question.key_points for wording in point]
    marks: list[tuple[int, int, str]] = []
    for wording, kind in sought:
        found = span(text, wording)
        if found and not any(start < found[1] and found[0] < end for start, end, _ in marks):
            marks.append((*found, kind))
    return sorted(marks)
