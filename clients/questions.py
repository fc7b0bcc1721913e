"""Question sets: JSONL, one question a line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstore import UserError


@dataclass(frozen=True)
class Question:
    """A question, and what a right answer must say: of every key point at least one wording."""

    id: str
    category: str
    question: str
    answer: str
    key_points: tuple[tuple[str, ...], ...]
    forbidden: tuple[str, ...] = ()
    source: str = ""


def read_questions(path: Path) -> list[Question]:
    """Raises UserError that names file, line and field of every mistake; unknown fields are allowed."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"There is no question set at {path}. Name one with QUESTIONS=my-questions.jsonl.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    questions: list[Question] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = _question(json.loads(line))
            if question.id in seen:
                raise ValueError(f"id: {question.id!r} stands in line {seen[question.id]} already")
            seen[question.id] = number
            questions.append(question)
        except (ValueError, RecursionError) as error:
            problems.append(f"  line {number}: {error}")
    if problems:
        more = f"\n  … and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(f"{path} has {len(problems)} mistake(s):\n" + "\n".join(problems[:10]) + more)
    if not questions:
        raise UserError(f"{path} holds no question. data/README.md shows how one looks.")
    return questions


def _question(row: Any) -> Question:
    if not isinstance(row, dict):
        raise ValueError("not an object")
    return Question(
        id=_text(row, "id"),
        category=_text(row, "category"),
        question=_text(row, "question"),
        answer=_text(row, "answer"),
        key_points=_points(row),
        forbidden=_wordings(row.get("forbidden", []), "forbidden"),
        source=str(row.get("source", "")),
    )


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field}: a text is expected, got {value!r}")
    return value


def _points(row: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    points = row.get("key_points")
    if not isinstance(points, list) or not points:
        raise ValueError("key_points: a list with at least one list of accepted wordings is expected")
    made = tuple(_wordings(point, "key_points") for point in points)
    if not all(made):
        raise ValueError("key_points: a point has no wording")
    return made


def _wordings(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(wording, str) and wording.strip() for wording in value):
        raise ValueError(f"{field}: a list of texts is expected, got {value!r}")
    for wording in value:
        if wording.startswith("re:"):
            try:
                re.compile(wording[3:])
            except re.error as error:
                raise ValueError(f"{field}: {wording!r} is no regular expression: {error}") from None
    return tuple(value)
