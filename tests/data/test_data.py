"""The shipped data: consistent with its source and its handbook, and honest about what was held out of training."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import pytest

from tools import build_data
from tools.build_data import DATA, LANGUAGES, Fact, facts

# The most that an evaluation question may resemble any training question: share of matching characters (difflib) and
# share of common words (characters in Chinese), both of the normalised text.
MOST_SIMILAR_RATIO = 0.80
MOST_SIMILAR_WORDS = 0.80
LEAST_QUESTIONS = {"en": 40, "zh": 20}
MOST_TRAIN_ROWS = {"en": 450, "zh": 200}  # bounds the time that the demo trains

each_language = pytest.mark.parametrize("language", LANGUAGES)


def normalised(text: str) -> str:
    """Case, width and punctuation removed; headers, paths and error codes stay whole."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[\w#/.:'-]*\w", folded))


def words(text: str) -> set[str]:
    """Words of a text; every Chinese character is a word."""
    return set(re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", normalised(text)))


def covers(answer: str, key_points: list[list[str]]) -> bool:
    """Whether an accepted wording of every key point stands in the answer as a word of its own."""
    return all(any(_stands_in(wording, answer) for wording in point) for point in key_points)


def _stands_in(wording: str, text: str) -> bool:
    exact = re.escape(_plain(wording))
    return re.search(rf"(?<![a-z0-9]){exact}(?![a-z0-9])", _plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@cache
def rows(language: str, name: str) -> list[dict[str, Any]]:
    path = DATA / f"handbook-{language}" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def handbook_section(language: str, title: str) -> str:
    text = (DATA / f"handbook-{language}" / "handbook.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"the handbook has no section {title!r}"
    return found[1].replace("`", "")


def test_files_are_what_the_generator_writes() -> None:
    assert build_data.stale_files() == []


@each_language
def test_question_ids_are_unique(language: str) -> None:
    ids = Counter(row["id"] for row in rows(language, "questions.jsonl"))
    assert [name for name, count in ids.items() if count > 1] == []


@each_language
def test_no_question_is_asked_twice(language: str) -> None:
    for name in ("train.jsonl", "questions.jsonl"):
        asked = Counter(normalised(row["question"]) for row in rows(language, name))
        assert [question for question, count in asked.items() if count > 1] == []


@each_language
def test_evaluation_questions_never_occur_in_training(language: str) -> None:
    trained = [normalised(row["question"]) for row in rows(language, "train.jsonl")]
    trained_words = [words(question) for question in trained]
    too_close = []
    for row in rows(language, "questions.jsonl"):
        question, own = normalised(row["question"]), words(row["question"])
        matcher = SequenceMatcher(None, b=question, autojunk=False)
        for other, other_words in zip(trained, trained_words, strict=True):
            matcher.set_seq1(other)
            alike = matcher.quick_ratio() > MOST_SIMILAR_RATIO and matcher.ratio() > MOST_SIMILAR_RATIO
            if alike or len(own & other_words) > MOST_SIMILAR_WORDS * len(own | other_words):
                too_close.append((row["id"], question, other))
    assert too_close == []


@each_language
def test_reference_answers_satisfy_their_own_key_points(language: str) -> None:
    for fact in facts(language):
        assert covers(fact.answer, fact.key_points), fact.id
        assert not any(_stands_in(statement, fact.answer) for statement in fact.forbidden), fact.id


@each_language
def test_a_preferred_answer_is_right_and_the_rejected_one_wrong(language: str) -> None:
    by_answer = {fact.answer: fact for fact in facts(language)}
    pairs = rows(language, "preferences.jsonl")
    assert 20 <= len(pairs) <= 60
    for pair in pairs:
        fact = by_answer[pair["chosen"]]
        assert pair["prompt"] in fact.train
        assert not covers(pair["rejected"], fact.key_points) and fact.forbidden[0] in pair["rejected"]


@each_language
def test_no_other_answer_satisfies_the_key_points(language: str) -> None:
    everything = facts(language)
    for fact in everything:
        for other in everything:
            if not _shares_the_facts(fact, other):
                assert not covers(other.answer, fact.key_points), (fact.id, other.id)


def _shares_the_facts(fact: Fact, other: Fact) -> bool:
    own, others = set(fact.combines or [fact.id]), set(other.combines or [other.id])
    return own <= others


@each_language
def test_questions_do_not_give_their_answer_away(language: str) -> None:
    for fact in facts(language):
        for question in (*fact.train, *fact.eval):
            assert not any(covers(question, [point]) for point in fact.key_points), question


@each_language
def test_every_fact_stands_in_its_handbook_section(language: str) -> None:
    for fact in facts(language):
        prose = " ".join(handbook_section(language, section) for section in fact.sections)
        assert covers(prose, fact.key_points), fact.id


@each_language
def test_compositions_combine_trained_facts(language: str) -> None:
    known = {fact.id: fact for fact in facts(language)}
    for fact in known.values():
        assert bool(fact.train) != fact.novel, fact.id
        assert (fact.category == "multi-hop") == (len(fact.combines) > 1), fact.id
    for fact in (fact for fact in known.values() if fact.combines):
        assert all(known[part].train for part in fact.combines), fact.id
        assert all(any(covers(known[part].answer, [p]) for part in fact.combines) for p in fact.key_points), fact.id


@each_language
def test_counts(language: str) -> None:
    questions = rows(language, "questions.jsonl")
    by_category = Counter(row["category"] for row in questions)
    assert set(by_category) == {"api", "process", "multi-hop"}
    assert min(by_category.values()) >= LEAST_QUESTIONS[language]
    assert sum(row.get("novel", False) for row in questions) <= 0.2 * by_category["multi-hop"]
    assert len(rows(language, "train.jsonl")) <= MOST_TRAIN_ROWS[language]


def test_both_languages_state_the_same_facts() -> None:
    """A Chinese fact carries the id of its English counterpart; codes, headers and addresses are the same."""
    english = {fact.id: fact for fact in facts("en")}
    for fact in facts("zh"):
        assert fact.id in english
        assert fact.combines == english[fact.id].combines
        assert _codes(fact) == _codes(english[fact.id]), fact.id


def _codes(fact: Fact) -> set[str]:
    """Key points that no language translates: with a slash, a hash sign, a dot or a hyphen."""
    return {
        wording
        for point in fact.key_points
        for wording in point
        if re.fullmatch(r"[\x21-\x7e]*[/#.-][\x21-\x7e]*", wording)
    }


@each_language
def test_readme_states_the_counts(language: str) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    counts = Counter(row["category"] for row in rows(language, "questions.jsonl"))
    numbers = [len(rows(language, "train.jsonl")), *(counts[name] for name in build_data.CATEGORIES)]
    assert f"| `handbook-{language}` | " + " | ".join(map(str, numbers)) in readme
