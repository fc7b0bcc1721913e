"""What counts as saying a key point, and how question sets are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients.normalise import normalise
from clients.quantities import one_quantity, quantities
from clients.questions import Question, read_questions
from clients.scorers import chosen, is_refusal, length, score
from clients.wordings import contains, span
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
        ("two hundred and fifty euros", "250 euros"),
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
        ("It takes 72 hours.", "num:3 days", True),
        ("It takes three days.", "num:3 days", True),
        ("It takes 3 weeks.", "num:3 days", False),
        ("exactly 99.20 per cent", "num:99.2%", True),
        ("about 99.25%", "num:99.2% ± 0.1", True),
        ("about 99.4%", "num:99.2% ± 0.1", False),
        ("€1,000 at most", "num:1000 euros", True),
        ("1000 dollars at most", "num:1000 euros", False),
        ("one thousand euros", "num:1,000 €", True),
        ("1.5 million rows", "num:1500000", True),
        ("百分之九十", "num:90%", True),
        ("三天之内", "num:72小时", True),
        ("2 GB", "num:2000 MB", True),
        ("version 1.10.0", "num:1.1", False),
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


@pytest.mark.parametrize(
    ("text", "wording", "part"),
    [
        ("It takes  Nine\nDays, no more.", "9 days", "Nine\nDays,"),
        ("Tomas Reyes decides; tomas reyes signs.", "Tomas Reyes", "Tomas Reyes"),
        ("必须在九天内提出申诉", "9天", "九天"),
        ("Use X-Marlin-Key.", "re:x-\\w+-key", "X-Marlin-Key."),
        ("It takes 72 hours.", "num:3 days", "72 hours."),
        ("no", "yes", None),
    ],
)
def test_a_wording_is_shown_where_it_stands(text: str, wording: str, part: str | None) -> None:
    found = span(text, wording)
    assert (text[slice(*found)] if found else None) == part


def asked(scorer: str, answer: str, **fields: object) -> Question:
    return Question("q", "c", "?", answer, (), scorer=scorer, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (asked("exact", "Tomas Reyes"), " tomas reyes. ", True),
        (asked("exact", "Tomas Reyes"), "It is Tomas Reyes", False),
        (asked("numeric", "41"), "First 3, then 41.", True),
        (asked("numeric", "41"), "First 41, then 3.", False),
        (asked("numeric", "3 days"), "On 12 May: three days", True),
        (asked("numeric", "3 days"), "It takes 72 h", True),
        (asked("numeric", "3 days"), "3 weeks", False),
        (asked("numeric", "3.14", tolerance=0.01), "3.149", True),
        (asked("numeric", "3"), "no number", False),
        (asked("choice", "B", choices=("red", "green", "blue")), "B", True),
        (asked("choice", "b", choices=("red", "green", "blue")), "The answer is (B).", True),
        (asked("choice", "B", choices=("red", "green", "blue")), "It must be green.", True),
        (asked("choice", "B", choices=("red", "green", "blue")), "red or green", False),
        (asked("choice", "B", choices=("red", "green", "blue")), "A. red", False),
        (asked("choice", "B", choices=("红", "绿", "蓝")), "答案是 B", True),
        (asked("refusal", "It is not known"), "I do not know that.", True),
        (asked("refusal", "It is not known"), "Nine days.", False),
    ],
)
def test_every_scorer(question: Question, answer: str, right: bool) -> None:
    assert score(question, answer).strict is right


def test_no_choice_is_guessed() -> None:
    assert chosen(asked("choice", "A", choices=("a b", "c d")), "an apple") == ""


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I'm sorry, but I cannot help.", True),
        ("As an AI, I have no access.", True),
        ("我不知道。", True),
        ("抱歉，无法回答", True),
        ("The desk cannot approve this; Tomas Reyes can.", False),
        ("", False),
    ],
)
def test_refusals(text: str, refusal: bool) -> None:
    assert is_refusal(text) is refusal


@pytest.mark.parametrize(
    ("text", "words"),
    [("three short words", 3), ("X-Marlin-Key is it.", 3), ("密钥放在 X-Marlin-Key 中。", 6), ("", 0), ("🚢", 1)],
)
def test_length_counts_words_or_characters(text: str, words: int) -> None:
    assert length(text) == words


def test_density_is_key_points_in_100_words() -> None:
    assert score(QUESTION, "Tomas Reyes within nine days").density == pytest.approx(40)
    assert score(QUESTION, "").density is None


def test_quantities_have_values_and_kinds() -> None:
    assert [(q.value, q.dimension) for q in quantities("3 days, 5% of 1,000 and -2")] == [
        (3 * 86400, "time"),
        (5, "percent"),
        (1000, ""),
        (-2, ""),
    ]
    assert one_quantity("3 days ± 1")[1] == 86400
    for bad in ("none", "3 or 4", "3 ± x"):
        with pytest.raises(ValueError, match="number is expected"):
            one_quantity(bad)


@pytest.mark.parametrize("name", ["handbook-en", "handbook-zh"])
def test_every_reference_answer_of_the_shipped_sets_is_right(name: str) -> None:
    for question in read_questions(DATA / name / "questions.jsonl"):
        assert score(question, question.answer).strict, question.id


GOOD = {"id": "a", "category": "api", "question": "q?", "answer": "a", "key_points": [["x"]]}


MESSAGES = {name: value for name, value in GOOD.items() if name != "question"}


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (GOOD | {"id": ""}, "id: a text is expected"),
        (GOOD | {"key_points": []}, "key_points"),
        (GOOD | {"key_points": [[]]}, "no wording"),
        (GOOD | {"key_points": [["re:("]]}, "no regular expression"),
        (GOOD | {"forbidden": "x"}, "forbidden"),
        ([], "not an object"),
        (GOOD | {"messages": [{"role": "user", "content": "x"}]}, "either question or messages"),
        (MESSAGES | {"messages": []}, "messages: a list"),
        (MESSAGES | {"messages": [{"role": "robot", "content": "x"}]}, "messages: a role"),
        (MESSAGES | {"messages": [{"role": "assistant", "content": "x"}]}, "the last turn is the user's"),
        (GOOD | {"scorer": "vibes"}, "scorer: one of key-points"),
        (GOOD | {"scorer": "choice", "answer": "D", "choices": ["x", "y"]}, "answer: the letter of a choice"),
        (GOOD | {"scorer": "choice", "answer": "A", "choices": ["x"]}, "choices: 2 to 26"),
        (GOOD | {"scorer": "numeric", "answer": "many"}, "answer: one number"),
        (GOOD | {"key_points": [["num:few"]]}, "key_points: one number"),
        (GOOD | {"tolerance": -1}, "tolerance: a number from 0"),
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


def test_a_conversation_is_sent_as_it_stands(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q?"}]
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(MESSAGES | {"messages": turns}) + "\n")
    (question,) = read_questions(path)
    assert question.question == "q?" and question.conversation("another prompt") == turns
    single = asked("choice", "A", choices=("x", "y"))
    assert single.conversation("prompt") == [
        {"role": "system", "content": "prompt"},
        {"role": "user", "content": "?\nA. x\nB. y"},
    ]


def test_100_000_questions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"id": str(number)}) + "\n" for number in range(100_000)))
    assert len(read_questions(path)) == 100_000
