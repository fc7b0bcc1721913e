"""Proves that no evaluation question occurs in the training data."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelstore import UserError

NEAR_DUPLICATE = 0.9  # Jaccard similarity of character 5-grams at and above which two questions count as one
GRAM = 5


@dataclass(frozen=True)
class Contamination:
    """`highest` is the largest similarity between an evaluation question and a training question."""

    questions: int
    exact: int
    near: int
    highest: float
    highest_pair: tuple[str, str]


def check_contamination(questions: Path, prompts: Sequence[str], lines: Sequence[int]) -> Contamination:
    """Compare every question with every training prompt. Raises UserError when one occurs, exactly or nearly.

    Similarity is the Jaccard index of the sets of character 5-grams after normalisation (NFKC, case, punctuation,
    spaces). An inverted index keeps 1,000 questions against 10,000 prompts within seconds.
    """
    asked = list(_read_questions(questions))
    grams = [_grams(prompt) for prompt in prompts]
    index: dict[str, list[int]] = defaultdict(list)
    for number, found in enumerate(grams):
        for gram in found:
            index[gram].append(number)
    matches = [_closest(question, grams, index) for _, question in asked]
    bad = [
        (asked[i][0], lines[row], similarity)
        for i, (row, similarity) in enumerate(matches)
        if similarity >= NEAR_DUPLICATE
    ]
    if bad:
        shown = "\n".join(f"  question {ident}: line {line}, similarity {value:.2f}" for ident, line, value in bad[:10])
        raise UserError(
            f"{len(bad)} of the {len(asked)} questions in {questions} occur in the training data, so the evaluation "
            f"would measure memory of the question:\n{shown}\nRemove them from one of the two files."
        )
    if not asked or not prompts:
        return Contamination(len(asked), 0, 0, 0.0, ("", ""))
    best = max(range(len(asked)), key=lambda i: matches[i][1])
    row, similarity = matches[best]
    return Contamination(len(asked), 0, 0, round(similarity, 3), (asked[best][1], prompts[row]))


def _read_questions(path: Path) -> Iterable[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The question set {path} (data.questions) cannot be read: {error}.") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield str(row.get("id", number)), _question(row)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError):
            raise UserError(f"{path}, line {number}: not a question with an id and a text.") from None


def _question(row: dict[str, object]) -> str:
    if "question" in row:
        return str(row["question"])
    messages = row["messages"]
    assert isinstance(messages, list)  # noqa: S101  a TypeError's twin for the caller above
    return str([turn["content"] for turn in messages if turn["role"] == "user"][-1])


def _grams(text: str) -> frozenset[str]:
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = " ".join(re.sub(r"[\W_]+", " ", plain).split())
    return frozenset(plain[i : i + GRAM] for i in range(max(1, len(plain) - GRAM + 1)))


def _closest(question: str, grams: Sequence[frozenset[str]], index: dict[str, list[int]]) -> tuple[int, float]:
    """The most similar prompt and its similarity, 0 to 1."""
    own = _grams(question)
    shared: dict[int, int] = defaultdict(int)
    for gram in own:
        for number in index.get(gram, ()):
            shared[number] += 1
    scores = ((number, count / (len(own) + len(grams[number]) - count)) for number, count in shared.items())
    return max(scores, key=lambda pair: pair[1], default=(0, 0.0))
