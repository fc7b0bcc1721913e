"""What counts as saying a key point, and how question sets are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients.normalise import contains, normalise
from clients.questions import Question, read_questions
from clients.scorers import score
from modelstore import UserError

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Ninety-nine  Days", "99 days"),
        ("１,０００.50 €", "1000.5 €"),
        ("twenty one", "21"),
        ("99.20 %", "99.2%"),
        ("九天内", "9天内"),
        ("十二个月", "12个月"),
        ("“Quoted” – dash", '"quoted" - dash'),
        ("version 1.10.0", "version 1.10.0"),
        ("someone often", "someone often"),
    ],
)
def test_equal_statements_become_equal(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("text", "wording", "found"),
    [
        ("within 9 days.", "9 days", True),
        ("within nine days", "9 days", True),
        ("within 19 days", "9 days", False),
        ("1.9 days", "9 days", False),
        ("9 days.5", "9 days", False),
        ("it is 1,000 credits", "1000 credits", True),
        ("send X-Marlin-Key: abc", "x-marlin-key", True),
        ("必须在九天内提出申诉", "9天", True),
        ("code TQ-41.", "re:tq-4[0-9]", True),
        ("", "9 days", False),
    ],
)
def test_a_wording_is_found_as_a_whole(text: str, wording: str, found: bool) -> None:
    assert contains(text, wording) is found


QUESTION = Question("q", "c", "?", "a", (("Tomas Reyes",), ("9 days", "nine-day")), ("90 days",))


@pytest.mark.parametrize(
    ("answer", "strict", "coverage"),
    [
        ("Tomas Reyes decides within nine days.", True, 1.0),
        ("Tomas Reyes decides.", False, 0.5),
        ("Tomas Reyes, 9 days, at most 90 days.", False, 1.0),
        ("No idea.", False, 0.0),
        ("", False, 0.0),
    ],
)
def test_strict_needs_every_point_and_nothing_forbidden(answer: str, strict: bool, coverage: float) -> None:
    found = score(QUESTION, answer)
    assert (found.strict, found.coverage) == (strict, coverage)


@pytest.mark.parametrize("name", ["handbook-en", "handbook-zh"])
def test_every_reference_answer_of_the_shipped_sets_is_right(name: str) -> None:
    for question in read_questions(DATA / name / "questions.jsonl"):
        assert score(question, question.answer).strict, question.id


GOOD = {"id": "a", "category": "api", "question": "q?", "answer": "a", "key_points": [["x"]]}


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (GOOD | {"id": ""}, "id: a text is expected"),
        (GOOD | {"key_points": []}, "key_points"),
        (GOOD | {"key_points": [[]]}, "no wording"),
        (GOOD | {"key_points": [["re:("]]}, "no regular expression"),
        (GOOD | {"forbidden": "x"}, "forbidden"),
        ([], "not an object"),
    ],
)
def test_mistakes_name_file_line_and_field(tmp_path: Path, row: object, part: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"q\.jsonl") as raised:
        read_questions(path)
    assert "line 2" in str(raised.value) and part in str(raised.value)


def test_a_duplicate_id_an_empty_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match="stands in line 1 already"):
        read_questions(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no question"):
        read_questions(path)
    with pytest.raises(UserError, match="There is no question set"):
        read_questions(tmp_path / "none.jsonl")
