"""Question sets: JSONL, one question a line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.quantities import one_quantity
from clients.wordings import refuse_bad
from modelstore import UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = ("key-points", "exact", "numeric", "choice", "refusal")
MAX_BYTES = 64 << 20  # it is read as a whole
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Question:
    """A question, and what a right answer must say; `scorer` names the rule, by default one wording of every key point.

    `messages` are (role, content) of a whole conversation; `question` is then its last turn.
    """

    id: str
    category: str
    question: str
    answer: str
    key_points: tuple[tuple[str, ...], ...]
    forbidden: tuple[str, ...] = ()
    source: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    scorer: str = "key-points"
    choices: tuple[str, ...] = ()
    tolerance: float = 0.0

    def conversation(self, system: str = "") -> list[dict[str, str]]:
        """What is sent; a system prompt of the question's own comes before the general one."""
        turns = list(self.messages or (("user", self.question),))
        if self.choices:
            listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, self.choices, strict=False))
            turns[-1] = ("user", f"{turns[-1][1]}\n{listed}")
        if system and turns[0][0] != "system":
            turns.insert(0, ("system", system))
        return [{"role": role, "content": content} for role, content in turns]


def read_questions(path: Path) -> list[Question]:
    """Raises UserError that names file, line and field of every mistake; unknown fields are allowed."""
    questions: list[Question] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            _refuse_half_pairs(row)
            question = _question(row)
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


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES >> 20} MiB, so it is no question set.")
        return data.decode("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"There is no question set at {path}. Name one with QUESTIONS=my-questions.jsonl.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def _refuse_half_pairs(row: Any) -> None:
    """JSON may escape half of a surrogate pair, which no request and no report can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair") from None


def _question(row: Any) -> Question:
    if not isinstance(row, dict):
        raise ValueError("not an object")
    scorer = row.get("scorer", "key-points")
    if scorer not in KINDS:
        raise ValueError(f"scorer: one of {', '.join(KINDS)} is expected, got {scorer!r}")
    messages = _messages(row)
    question = Question(
        id=_text(row, "id"),
        category=_text(row, "category"),
        question=messages[-1][1] if messages else _text(row, "question"),
        answer=_text(row, "answer"),
        key_points=_points(row, scorer),
        forbidden=_wordings(row.get("forbidden", []), "forbidden"),
        source=str(row.get("source", "")),
        messages=messages,
        scorer=scorer,
        choices=_choices(row, scorer),
        tolerance=_tolerance(row),
    )
    if scorer == "numeric":
        try:
            one_quantity(question.answer)
        except ValueError as error:
            raise ValueError(f"answer: {error}") from None
    return question


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field}: a text is expected, got {value!r}")
    return value


def _messages(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    if "messages" not in row:
        return ()
    if "question" in row:
        raise ValueError("messages: either question or messages is expected, not both")
    turns = row["messages"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages: a list of {role, content} is expected")
    made = []
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise ValueError(f"messages: a role of {', '.join(ROLES)} is expected, got {turn!r}")
        made.append((turn["role"], _text(turn, "content")))
    if made[-1][0] != "user":
        raise ValueError("messages: the last turn is the user's")
    return tuple(made)


def _points(row: dict[str, Any], scorer: str) -> tuple[tuple[str, ...], ...]:
    points = row.get("key_points", [])
    if not isinstance(points, list) or (not points and scorer == "key-points"):
        raise ValueError("key_points: a list with at least one list of accepted wordings is expected")
    made = tuple(_wordings(point, "key_points") for point in points)
    if not all(made):
        raise ValueError("key_points: a point has no wording")
    return made


def _choices(row: dict[str, Any], scorer: str) -> tuple[str, ...]:
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(text, str) and text.strip() for text in choices):
        raise ValueError(f"choices: a list of texts is expected, got {choices!r}")
    if scorer != "choice":
        return tuple(choices)
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError("choices: 2 to 26 texts are expected")
    letters = LETTERS[: len(choices)]
    if str(row.get("answer")).strip().upper() not in tuple(letters):
        raise ValueError(f"answer: the letter of a choice is expected, {letters[0]} to {letters[-1]}")
    return tuple(choices)


def _tolerance(row: dict[str, Any]) -> float:
    value = row.get("tolerance", 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"tolerance: a number from 0 is expected, got {value!r}")
    return float(value)


def _wordings(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(wording, str) and wording.strip() for wording in value):
        raise ValueError(f"{field}: a list of texts is expected, got {value!r}")
    for wording in value:
        try:
            refuse_bad(wording)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
    return tuple(value)
