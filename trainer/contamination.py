"""Proves that no evaluation question occurs in the training data."""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import UserError
from trainer.rows import Conversation

if TYPE_CHECKING:
    import numpy

NEAR_DUPLICATE = 0.9  # similarity at and above which two questions count as one
GRAM = 5
SHOWN = 10
# becomes a space; signs that tell words apart (C# and C++, 10% and 10) stay
PUNCTUATION = dict.fromkeys(map(ord, ".,;:!?…。、·\"'`“”‘’«»「」『』《》()[]{}-–—_/*"), " ")


@dataclass(frozen=True)
class Contamination:
    """A passed check. `highest` is the largest similarity of an evaluation question to a training question, 0 to 1."""

    questions: int
    limit: float
    highest: float
    highest_id: str
    highest_line: int | None


@dataclass(frozen=True)
class _Match:
    ident: str
    question: str
    line: int | None
    similarity: float


@dataclass(frozen=True)
class _Asked:
    """A user turn or a document of the training data, normalised."""

    line: int
    text: str
    is_document: bool


def check_contamination(questions: Path, conversations: Mapping[int, Conversation]) -> Contamination:
    """Compare every evaluation question with every user turn and document; `conversations` are keyed by their line.

    A question occurs when it equals a user turn after normalisation (NFKC, case, punctuation, spaces), when its
    similarity to one is at least NEAR_DUPLICATE, or when a document quotes it. Similarity is the Jaccard index of the
    sets of character 5-grams of the normalised texts. Raises UserError with ids and lines when one occurs.
    """
    evaluated = read_questions(questions)
    matches = _matches(evaluated, _asked(conversations))
    if bad := [match for match in matches if match.similarity >= NEAR_DUPLICATE]:
        exact = sum(match.similarity == 1 for match in bad)
        shown = "\n".join(
            f"  question {match.ident}, line {match.line}, "
            f"{'the same' if match.similarity == 1 else f'similarity {match.similarity:.2f}'}: {match.question[:100]!r}"
            for match in bad[:SHOWN]
        )
        more = f"\n  … and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise UserError(
            f"{len(bad)} of the {len(evaluated)} questions in {questions} occur in the training data ({exact} exactly, "
            f"{len(bad) - exact} nearly: similarity {NEAR_DUPLICATE} or more), so the evaluation would measure memory "
            f"of the question:\n{shown}{more}\nRemove them from one of the two files."
        )
    best = max(matches, key=lambda match: match.similarity)
    return Contamination(len(evaluated), NEAR_DUPLICATE, round(best.similarity, 3), best.ident, best.line)


def read_questions(path: Path) -> dict[str, str]:
    """Questions by id. Raises UserError for an unreadable or empty file, a bad row, or an id that occurs twice."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 ({error.reason})"
        raise UserError(f"The question set {path} (data.questions) cannot be read: {reason}. Check the path.") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        ident, question = _question(line, f"{path}, line {number}")
        if ident in found:
            raise UserError(f"{path}, line {number}: the id {ident!r} occurs twice. Give each question its own id.")
        found[ident] = question
    if not found:
        raise UserError(f'{path} holds no question. Write one a line: {{"id": "api-001", "question": "…", …}}')
    return found


def _question(line: str, place: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}. Mend the line.") from None
    ident, question = (row.get("id"), _asked_last(row)) if isinstance(row, dict) else (None, None)
    if not isinstance(ident, str) or not isinstance(question, str) or not question.strip():
        raise UserError(
            f'{place}: a question needs an "id" and a "question" or "messages" that end with a user\'s text.'
        )
    return ident, question


def _asked_last(row: dict[str, Any]) -> Any:
    """The question, or the last turn of a whole conversation; None where it has another form."""
    match row:
        case {"messages": [*_, {"role": "user", "content": content}]}:
            return content
    return row.get("question")


def _asked(conversations: Mapping[int, Conversation]) -> list[_Asked]:
    return [
        _Asked(line, _normalised(content), is_document=role == "text")
        for line, conversation in conversations.items()
        for role, content in conversation
        if role in ("user", "text")
    ]


def _normalised(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain.translate(PUNCTUATION).split()) or plain.strip()


def _grams(plain: str) -> set[str]:
    return {plain[i : i + GRAM] for i in range(max(1, len(plain) - GRAM + 1))}


def _matches(evaluated: Mapping[str, str], asked: list[_Asked]) -> list[_Match]:
    """The closest training text of each question: by an inverted index, as 1,000 x 10,000 pairs are too many."""
    import numpy

    grams = [_grams(text.text) for text in asked]
    sizes = numpy.array([len(found) for found in grams])
    holders: dict[str, list[int]] = defaultdict(list)
    for number, found in enumerate(grams):
        for gram in found:
            holders[gram].append(number)
    index = {gram: numpy.array(numbers) for gram, numbers in holders.items()}
    documents = numpy.array([text.is_document for text in asked], dtype=bool)
    return [_closest(ident, question, asked, sizes, documents, index) for ident, question in evaluated.items()]


def _closest(
    ident: str,
    question: str,
    asked: list[_Asked],
    sizes: numpy.ndarray[Any, Any],
    documents: numpy.ndarray[Any, Any],
    index: Mapping[str, numpy.ndarray[Any, Any]],
) -> _Match:
    import numpy

    plain = _normalised(question)
    own = _grams(plain)
    holders = [index[gram] for gram in own if gram in index]
    if not holders:
        return _Match(ident, question, None, 0.0)
    shared = numpy.bincount(numpy.concatenate(holders), minlength=len(asked))
    quoting = (asked[i] for i in numpy.flatnonzero(documents & (shared == len(own))))
    if quote := next((text for text in quoting if f" {plain} " in f" {text.text} "), None):
        return _Match(ident, question, quote.line, 1.0)
    similarity = shared / (len(own) + sizes - shared)
    best = int(similarity.argmax())
    is_same = plain == asked[best].text
    value = 1.0 if is_same else min(float(similarity[best]), 0.999)
    return _Match(ident, question, asked[best].line, value)
