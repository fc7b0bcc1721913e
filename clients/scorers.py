"""Scores of one answer. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from clients.normalise import contains
from clients.questions import Question


@dataclass(frozen=True)
class Score:
    """strict: every key point said and nothing forbidden. coverage: share of the key points that are said."""

    strict: bool
    coverage: float
    covered: tuple[bool, ...]
    forbidden: tuple[str, ...]


def score(question: Question, answer: str) -> Score:
    """How well `answer` says what the question's key points demand."""
    covered = tuple(any(contains(answer, wording) for wording in point) for point in question.key_points)
    wrong = tuple(wording for wording in question.forbidden if contains(answer, wording))
    return Score(all(covered) and not wrong, sum(covered) / len(covered), covered, wrong)
