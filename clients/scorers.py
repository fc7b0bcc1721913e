"""Scores of one answer. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from clients.normalise import normalise
from clients.quantities import one_quantity, quantities
from clients.questions import LETTERS, Question
from clients.wordings import contains

_HAN = re.compile(r"[\u3400-\u9fff]")
_REFUSALS = re.compile(
    r"\bi(?: do not|'m not| am not| don't) (?:know|sure|certain|aware|have (?:any |that |the )?(?:information|access))"
    r"|\bi(?:'m| am) (?:unable|sorry|afraid)|\bi (?:cannot|can't|can not|could not|couldn't) "
    r"|\bno information (?:is|about|on)|\bas an ai\b|\bnot (?:specified|stated|mentioned|provided) in\b"
    r"|我不(?:知道|清楚|确定|了解)|无法(?:回答|提供|确定|得知)|抱歉|对不起|没有(?:相关|这方面的)?(?:信息|资料)|作为一个(?:ai|人工智能)"
)
_CHOICE = (
    re.compile(r"^\(?([a-z])(?:[).:,]|$|\s*[-–])"),
    re.compile(r"\b(?:answer|choice|option)(?: is|:)?\s*\(?([a-z])\b\)?"),
    re.compile(r"(?:答案|选)(?:是|为|:)?\s*\(?([a-z])(?![a-z])"),
    re.compile(r"\(([a-z])\)"),
)


@dataclass(frozen=True)
class Score:
    """strict: right by the question's scorer. coverage: share of the key points that are said.

    length: words, in Chinese characters. density: key points said per 100 of them, None for no length.
    """

    strict: bool
    coverage: float
    covered: tuple[bool, ...]
    forbidden: tuple[str, ...]
    refused: bool = False
    length: int = 0
    density: float | None = None


def score(question: Question, answer: str) -> Score:
    """How well `answer` says what the question demands."""
    covered = covered_points(question, answer)
    wrong = tuple(wording for wording in question.forbidden if contains(answer, wording))
    right = SCORERS[question.scorer](question, answer) and not wrong
    words = length(answer)
    said = sum(covered) if covered else int(right)
    return Score(
        strict=right,
        coverage=sum(covered) / len(covered) if covered else float(right),
        covered=covered,
        forbidden=wrong,
        refused=is_refusal(answer),
        length=words,
        density=100 * said / words if words else None,
    )


def covered_points(question: Question, answer: str) -> tuple[bool, ...]:
    """For each key point whether one of its wordings is said."""
    return tuple(any(contains(answer, wording) for wording in point) for point in question.key_points)


def has_every_point(question: Question, answer: str) -> bool:
    """All key points."""
    return all(covered_points(question, answer))


def is_exact(question: Question, answer: str) -> bool:
    """The reference answer and nothing else, apart from case, spaces and the final stop."""
    return _bare(answer) == _bare(question.answer)


def _bare(text: str) -> str:
    return normalise(text).strip(" .。!！\"'")


def is_numeric(question: Question, answer: str) -> bool:
    """The last quantity of the answer's kind equals the reference, within the question's tolerance."""
    wanted, tolerance = one_quantity(question.answer)
    said = [one for one in quantities(answer) if not wanted.dimension or one.dimension in ("", wanted.dimension)]
    with_unit = [one for one in said if one.dimension] or said
    return bool(with_unit) and wanted.equals(with_unit[-1], max(tolerance, question.tolerance))


def is_choice(question: Question, answer: str) -> bool:
    """The letter of the right choice, or its text and that of no other choice."""
    return chosen(question, answer) == question.answer.strip().upper()


def chosen(question: Question, answer: str) -> str:
    """The letter that the answer chooses; "" where it chooses none or several."""
    plain, letters = normalise(answer), LETTERS[: len(question.choices)]
    for pattern in _CHOICE:
        if (found := pattern.search(plain)) and found[1].upper() in letters:
            return found[1].upper()
    named = [letter for letter, text in zip(letters, question.choices, strict=False) if contains(answer, text)]
    return named[0] if len(named) == 1 else ""


def is_refusal(answer: str) -> bool:
    """Whether the answer says that it cannot answer (English and Chinese)."""
    return _REFUSALS.search(normalise(answer)) is not None


def length(text: str) -> int:
    """Words; characters without spaces and punctuation where the text is Chinese."""
    han = len(_HAN.findall(text))
    words = re.findall(r"\w+(?:[-.'’]\w+)*", _HAN.sub(" ", text))
    return han + len(words) if han > len(words) else len(text.split())


SCORERS: dict[str, Callable[[Question, str], bool]] = {
    "key-points": has_every_point,
    "exact": is_exact,
    "numeric": is_numeric,
    "choice": is_choice,
    "refusal": lambda _, answer: is_refusal(answer),
}
