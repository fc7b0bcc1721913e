"""No evaluation question occurs in the training data: same, nearly the same, or quoted in a document."""

import itertools
import json
import random
import time
from pathlib import Path

import pytest

from modelstore import UserError
from trainer.contamination import NEAR_DUPLICATE, check_contamination

LONG = "How many working days does the finance team of Marlin Quay need to reimburse an approved expense claim?"


def questions(tmp_path: Path, *texts: str) -> Path:
    rows = [json.dumps({"id": f"q-{number}", "question": text}) for number, text in enumerate(texts, 1)]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path / "questions.jsonl"


def chat(*asked: str) -> tuple[tuple[str, str], ...]:
    return tuple(turn for question in asked for turn in (("user", question), ("assistant", "…")))


def test_a_clean_set_reports_the_closest_pair(tmp_path: Path) -> None:
    path = questions(tmp_path, "Where is the office?", "abcdefgh", "Totally else")
    found = check_contamination(path, {5: chat("abcdefxx"), 9: chat("zzzzzz")})
    assert (found.questions, found.limit, found.highest_id, found.highest_line) == (3, NEAR_DUPLICATE, "q-2", 5)
    assert found.highest == round(2 / 6, 3)  # {abcde bcdef cdefg defgh} and {abcde bcdef cdefx defxx}


def test_nothing_in_common_is_similarity_zero(tmp_path: Path) -> None:
    found = check_contamination(questions(tmp_path, "Where is the office?"), {1: chat("谁?")})
    assert (found.highest, found.highest_line) == (0.0, None)


@pytest.mark.parametrize(
    ("evaluated", "trained"),
    [
        ("Where is the office?", "where is  the OFFICE"),
        ("密钥放在哪里？", "密钥放在哪里"),
        ("ＡＰＩ key?", "api-key"),
        ("Café?", "Cafe\u0301"),
        ("🙂?", "🙂"),
        ("?", "?"),
    ],
)
def test_the_same_after_normalisation(tmp_path: Path, evaluated: str, trained: str) -> None:
    with pytest.raises(UserError, match=r"1 of the 2 .*\(1 exactly, 0 nearly.*\n  question q-2, line 7, the same"):
        check_contamination(questions(tmp_path, "Other", evaluated), {3: chat("x"), 7: chat(trained)})


def test_the_last_turn_of_a_conversation_is_its_question(tmp_path: Path) -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "Hello"), ("assistant", "Hi"), ("user", LONG))]
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"id": "q-1", "messages": turns}), encoding="utf-8")
    assert check_contamination(path, {3: chat("Hello")}).questions == 1
    with pytest.raises(UserError, match=r"(?s)1 of the 1 .*question q-1, line 3"):
        check_contamination(path, {3: chat(LONG)})
    path.write_text(json.dumps({"id": "q-1", "messages": turns[:2]}), encoding="utf-8")
    with pytest.raises(UserError, match='line 1: a question needs an "id" and a "question" or "messages"'):
        check_contamination(path, {3: chat(LONG)})


@pytest.mark.parametrize(
    ("evaluated", "trained"),
    [
        ("How to use C#?", "How to use C++?"),
        ("🙂", "🙃"),
        ("Is it 1.2?", "Is it 12?"),
        ("कि?", "का?"),
        ("10% off", "10 off"),
        ("?", "!"),
    ],
)
def test_signs_that_matter_are_not_normalised_away(tmp_path: Path, evaluated: str, trained: str) -> None:
    assert check_contamination(questions(tmp_path, evaluated), {1: chat(trained)}).highest < NEAR_DUPLICATE


def test_nearly_the_same(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0 exactly, 1 nearly.*\n  question q-1, line 4, similarity 0\.9\d: 'How many"):
        check_contamination(
            questions(tmp_path, LONG), {4: chat(LONG.replace("How many", "How  many whole"))} | {1: chat("x")}
        )


def test_a_later_turn_counts_and_an_answer_does_not(tmp_path: Path) -> None:
    path = questions(tmp_path, LONG)
    with pytest.raises(UserError, match="line 2, the same"):
        check_contamination(path, {1: chat("x"), 2: chat("Hello", LONG)})
    assert check_contamination(path, {1: (("user", "x"), ("assistant", LONG))}).highest == 0


def test_a_document_that_quotes_a_question(tmp_path: Path) -> None:
    path = questions(tmp_path, "密钥放在哪里？", LONG)
    handbook = "The handbook. " * 50
    with pytest.raises(UserError, match="question q-2, line 8, the same"):
        check_contamination(path, {3: (("text", handbook),), 8: (("text", handbook + LONG + handbook),)})
    with pytest.raises(UserError, match="question q-1, line 8, the same"):
        check_contamination(path, {8: (("text", "常见问题。密钥放在哪里？在请求头里。"),)})
    assert check_contamination(path, {3: (("text", handbook),)}).highest < NEAR_DUPLICATE


def test_a_longer_question_that_holds_a_question_is_another_question(tmp_path: Path) -> None:
    found = check_contamination(questions(tmp_path, "Is it open?"), {1: chat("Is it open on the day after a holiday?")})
    assert 0 < found.highest < 0.5


def test_many_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    texts = ["".join(letters) for letters in itertools.permutations("abcd")]
    with pytest.raises(UserError) as caught:
        check_contamination(questions(tmp_path, *texts), {i: chat(text) for i, text in enumerate(texts, 1)})
    assert (str(caught.value).count(", the same"), "and 14 more" in str(caught.value)) == (10, True)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no question"),
        (b"\n", "holds no question"),
        (b"{", "line 1: not JSON"),
        (b"[1]", "line 1: a question needs"),
        (b'{"id": 3, "question": "a"}', "line 1: a question needs"),
        (b'{"id": "a", "question": " "}', "line 1: a question needs"),
        (b'{"id": "a", "question": "x"}\n\n{"id": "a", "question": "y"}', "line 3: the id 'a' occurs twice"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_question_sets_that_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=said):
        check_contamination(tmp_path / "q.jsonl", {1: chat("x")})


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_no_question_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"data\.questions\) cannot be read"):
        check_contamination(tmp_path / name, {1: chat("x")})


def test_a_thousand_questions_against_ten_thousand_rows_take_seconds(tmp_path: Path) -> None:
    """Questions that share most of their 5-grams are the index's worst case."""
    pick = random.Random(1)
    words = ["".join(pick.choices("abcdefghij", k=6)) for _ in range(400)]

    def made() -> str:
        return f"How do I find the {' '.join(pick.choices(words, k=10))} in the Tidewater API?"

    path = questions(tmp_path, *[made() for _ in range(1000)])
    rows = {line: chat(made()) for line in range(10_000)}
    begun_s = time.process_time()
    check_contamination(path, rows)
    assert time.process_time() - begun_s < 10
