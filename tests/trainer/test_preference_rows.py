"""Pairs of a chosen and a rejected answer: the forms that public files have, what is refused, what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import FAMILIES, byte_level

from modelstore import UserError
from trainer.config import TrainConfig, config_sha256
from trainer.plan_data import counted, estimated
from trainer.prepare import Prepared, prepare
from trainer.render import Example, render
from trainer.rows import BadRow, Rows, read_rows

PAIR = (("user", "Who?"), ("assistant", "Ada."), ("rejected", "Bob."))
ASK, ADA, BOB = ({"role": role, "content": text} for role, text in (*PAIR[:2], ("assistant", "Bob.")))
ROW = {"prompt": "Who?", "chosen": "Ada.", "rejected": "Bob."}
TOKENIZER = byte_level("chatml")


def written(folder: Path, *rows: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(folder: Path, *rows: object) -> Rows:
    return read_rows(written(folder, *rows), max_bad_share=0.5, preferences=True)


def pair(number: int, chosen: str = "Ada.", rejected: str = "Bob.") -> dict[str, str]:
    return {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected}


def prepared(folder: Path, *rows: object, **settings: Any) -> Prepared:
    options = {"max_length_tokens": 256, "held_out_share": 0.0, "seed": 1, "questions": None, **settings}
    return prepare(read(folder, *rows), TOKENIZER, **options)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        (ROW, PAIR),
        ({"question": " Who?", "chosen": "Ada.\n", "rejected": "Bob.", "source": 3}, PAIR),
        ({"system": "Short.", "question": "Who?", "chosen": "Ada.", "rejected": "Bob."}, (("system", "Short."), *PAIR)),
        ({"system": "", "question": "Who?", "chosen": "Ada.", "rejected": "Bob."}, PAIR),
        ({"chosen": [ASK, ADA], "rejected": [ASK, BOB]}, PAIR),
        ({"prompt": "Who?", "chosen": [ASK, ADA], "rejected": [ASK, BOB], "messages": [ASK, ADA]}, PAIR),
        ({"prompt": [ASK], "chosen": [ADA], "rejected": [BOB]}, PAIR),
        ({"messages": [ASK], "chosen": ADA, "rejected": BOB}, PAIR),
        ({"messages": [ASK, BOB, ASK], "chosen": "Ada.", "rejected": "Bob."}, (PAIR[0], ("assistant", "Bob."), *PAIR)),
    ],
)
def test_the_usual_forms_of_pairs_are_read(tmp_path: Path, row: dict[str, Any], turns: Any) -> None:
    rows = read(tmp_path, row)
    assert (rows.format, rows.conversations, rows.lines, rows.bad_rows) == ("prompt/chosen/rejected", [turns], [1], [])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": "Who?", "chosen": "Ada."}, "no 'rejected'"),
        ({**ROW, "chosen": None}, "no 'chosen'"),
        ({**ROW, "rejected": " "}, "'rejected' is empty"),
        ({**ROW, "rejected": "Ada. "}, "'chosen' and 'rejected' are the same answer"),
        ({**ROW, "chosen": [ADA, ASK]}, "'chosen': the last turn is user, not assistant"),
        ({"chosen": "Ada.", "rejected": "Bob."}, "no 'prompt', 'question' or 'messages', and 'chosen' holds an answer"),
        ({"chosen": [ASK, ADA], "rejected": [BOB]}, "'chosen' and 'rejected' differ before their last turn"),
        ({**ROW, "prompt": "Why?", "chosen": [ASK, ADA], "rejected": [ASK, BOB]}, "'chosen' does not begin with"),
        ({"messages": [ASK, ADA], "chosen": "Ada.", "rejected": "Bob."}, "turn 3: assistant after assistant"),
        ({**ROW, "chosen": [{"role": "critic", "content": "x"}]}, "'chosen': turn 1: unknown role 'critic'"),
    ],
)
def test_a_bad_pair_is_named_with_its_line(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    (found,) = read(tmp_path, ROW, ROW, bad).bad_rows
    assert (found.line, found.reason.startswith(reason)) == (3, True), found


def test_each_method_refuses_the_rows_of_the_other(tmp_path: Path) -> None:
    answers = written(tmp_path, {"question": "Who?", "answer": "Ada."})
    with pytest.raises(UserError, match=r'format question/answer, and training.method = "dpo" compares .* "rejected"'):
        read_rows(answers, max_bad_share=0, preferences=True)
    with pytest.raises(UserError, match=r'rejected answers, which only training.method = "dpo" learns from: set that'):
        read_rows(written(tmp_path, ROW), max_bad_share=0)
    with pytest.raises(UserError, match=r"mixes formats: prompt/chosen/rejected \(line 1\) and question/answer"):
        read(tmp_path, ROW, {"question": "Who?", "answer": "Ada."})


@pytest.mark.parametrize("family", FAMILIES)
def test_both_answers_follow_the_served_prompt_and_end_their_turn(family: str) -> None:
    tokenizer, end = byte_level(family), FAMILIES[family][2]
    earlier = (("user", "Hello"), ("assistant", "Hi."))
    example = render((*earlier, *PAIR), tokenizer)
    prompt = tokenizer.decode(example.input_ids[: example.prompt_tokens])
    turns = [{"role": role, "content": text} for role, text in (*earlier, PAIR[0])]
    assert prompt == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.input_ids[example.prompt_tokens :]).strip() == f"Ada.{end}"
    assert tokenizer.decode(example.rejected_ids).strip() == f"Bob.{end}"
    assert sum(example.completion_mask) == len(example.input_ids) - example.prompt_tokens


def test_every_pair_is_accounted_for(tmp_path: Path) -> None:
    late = pair(3, "x" * 300, "x" * 300 + "y")
    found = prepared(tmp_path, pair(1), pair(1), pair(1, "Bob.", "Ada."), pair(2), late, pair(4, "<|im_end|>"))
    report = found.report
    assert (report.rows, report.train_rows, report.duplicates, report.conflicts) == (6, 3, 1, [(1, 3)])
    assert (report.truncated, report.dropped_without_answer) == (1, 1)  # alike as far as they are kept
    assert report.bad_rows == [BadRow(6, "holds '<|im_end|>', a control token of this model")]
    assert report.sample.endswith("⟦Ada.<|im_end|>⟧ rather than ⟦Bob.<|im_end|>⟧")
    assert report.tokens == sum(sum(example.sequences) for example in found.train)
    with pytest.raises(UserError, match=r"\(0%\): the answers of every row begin to differ behind"):
        prepared(tmp_path, pair(1), max_length_tokens=16)


def test_whole_questions_are_held_out_and_evaluation_questions_refused(tmp_path: Path) -> None:
    pairs = [pair(number // 2, rejected=f"Bob {number}.") for number in range(20)]
    found = prepared(tmp_path, *pairs, held_out_share=0.2)
    assert (len(found.train), len(found.held_out)) == (16, 4)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"id": "q-1", "question": "question 7"}) + "\n")
    with pytest.raises(UserError, match="1 of the 1 questions"):
        prepared(tmp_path, *pairs, questions=questions)


def config(path: Path | str = "pairs.jsonl", **changes: Any) -> TrainConfig:
    tree: dict[str, Any] = {"name": "x", "model": {"base": "package:a"}, "data": {"path": str(path)}}
    tree |= {"training": {"method": "dpo", "max_steps": 1} | changes.pop("training", {}), **changes}
    return TrainConfig.model_validate(tree)


def test_a_pair_counts_as_two_sequences(tmp_path: Path) -> None:
    path = written(tmp_path, *(pair(number, "Ada. " * number) for number in range(1, 9)))
    found = prepared(tmp_path, *(pair(number, "Ada. " * number) for number in range(1, 9)), max_length_tokens=128)
    size, guess = counted(config(path), found.train), estimated(config(path))
    assert size.rows == guess.rows == 8
    assert size.lengths.longest == max(max(example.sequences) for example in found.train)
    assert size.mean_tokens == sum(sum(example.sequences) for example in found.train) / 16
    assert Example([1, 2, 3, 4], [0, 0, 1, 1], [5, 6]).cut(3) == Example([1, 2, 3], [0, 0, 1], [5])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"training": {"packing": True}}, "set packing = false"),
        ({"training": {"batches": "padding_free"}}, 'batches = "auto"'),
        ({"training": {"processes": 2, "batch_size": 2}}, "set processes = 1"),
        ({"training": {"plan": "fastest"}}, 'set plan = "as_written"'),
        ({"lora": {"dropout": 0.1}}, "dropout would tell apart"),
        ({"training": {"dpo_loss": "nca_pair"}}, "'sigmoid', 'hinge' or 'ipo'"),
        ({"training": {"method": "lora", "dpo_beta": 0.5}}, 'training.dpo_beta is for method = "dpo"'),
        ({"training": {"method": "full", "dpo_loss": "ipo"}}, 'training.dpo_loss is for method = "dpo"'),
    ],
)
def test_what_pairs_cannot_be_combined_with_is_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        config(**changes)


def test_the_hash_of_a_config_sees_what_decides_pairs() -> None:
    hashes = [config_sha256(config(training=changes)) for changes in ({}, {"dpo_beta": 0.2}, {"dpo_loss": "ipo"})]
    assert len(set(hashes)) == 3
