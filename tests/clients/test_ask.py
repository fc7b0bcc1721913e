"""Asking: faults of a server, retries, resuming; what works is proven against the real engine in tests/e2e."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clients.answers import Answer, read_answers
from clients.ask import AskOptions, ask_all
from clients.cli import main
from clients.endpoint import Endpoint, model_names, refuse_unknown, served_run
from clients.eval_config import EvalConfig, read_config
from clients.evaluate import gate, scored, summarise
from clients.questions import Question
from clients.report import render
from clients.run_eval import EvalOutcome, EvalWish, run_eval
from modelstore import UserError
from tests.clients import pages

FAULTS = ["500", "400", "dies", "garbage", "null", "number", "bytes", "error event", "reset"]


def question(text: str) -> Question:
    return Question(f"id-{text}", "process", text, "Tomas Reyes", (("Tomas Reyes",),))


def ask(endpoint: Endpoint, results: Path, *texts: str, **options: Any) -> list[Answer]:
    rows = [question(text) for text in texts]
    return asyncio.run(ask_all(endpoint, "tuned", rows, AskOptions(**options), results, lambda _: None))


def test_a_good_answer_has_its_timing(endpoint: Endpoint, tmp_path: Path) -> None:
    (answer,) = ask(endpoint, tmp_path / "r", "fine")
    assert (answer.text, answer.finish_reason, answer.output_tokens, answer.error) == ("Tomas Reyes", "stop", 2, "")
    assert answer.ttft_ms is not None and answer.ttft_ms > 0 and answer.engine == "b7"


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_counted_and_never_scored(endpoint: Endpoint, tmp_path: Path, text: str) -> None:
    answers = ask(endpoint, tmp_path / "r", text)
    assert answers[0].error
    rows = scored([question(text)], answers)
    summary = summarise({"base": rows, "tuned": rows})
    assert summary["tuned"]["failed"] == 1 and summary["tuned"]["strict"] is None
    assert summary["comparison"] is None and summary["verdict"] == "No question was answered by both."
    assert gate(summary)["passed"] is False


def test_an_empty_answer_is_an_answer_and_wrong(endpoint: Endpoint, tmp_path: Path) -> None:
    rows = scored([question("empty")], ask(endpoint, tmp_path / "r", "empty"))
    summary = summarise({"base": rows, "tuned": rows})
    assert (summary["tuned"]["failed"], summary["tuned"]["empty"], summary["tuned"]["strict"]) == (0, 1, 0.0)
    assert summary["tuned"]["ttft_ms_p50"] is None and summary["tuned"]["density"] is None


def test_a_passing_fault_is_tried_again_and_a_refusal_is_not(endpoint: Endpoint, tmp_path: Path) -> None:
    once, refused, broken = ask(endpoint, tmp_path / "r", "500 once", "400", "dies", attempts=3)
    assert (once.error, once.attempts) == ("", 2)
    assert (refused.attempts, broken.attempts) == (1, 3)


def test_an_interrupted_evaluation_does_not_ask_twice(endpoint: Endpoint, tmp_path: Path, asked: list[str]) -> None:
    ask(endpoint, tmp_path / "r", "one", "split\u2028line")
    with (tmp_path / "r").open("a") as file:
        file.write('{"question_id": "id-tw')  # cut off by a crash
    asked.clear()
    answers = ask(endpoint, tmp_path / "r", "one", "two", "split\u2028line")
    assert asked == ["two"] and [a.error for a in answers] == ["", "", ""]
    assert sorted(a.question_id for a in read_answers(tmp_path / "r")) == ["id-one", "id-split\u2028line", "id-two"]


def test_failed_requests_are_asked_again_when_continued(endpoint: Endpoint, tmp_path: Path) -> None:
    (first,) = ask(endpoint, tmp_path / "r", "500 once", attempts=1)
    (second,) = ask(endpoint, tmp_path / "r", "500 once", attempts=1)
    assert first.error and not second.error


def test_samples_are_asked_with_seeds_of_their_own(endpoint: Endpoint, tmp_path: Path) -> None:
    answers = ask(endpoint, tmp_path / "r", "one", "two", samples=3, temperature=0.7)
    assert [(a.question_id, a.sample) for a in answers] == [(f"id-{q}", n) for q in ("one", "two") for n in range(3)]
    (row, _) = scored([question("one"), question("two")], answers)
    assert len(row.scores) == 3 and row.rate == 1.0


def test_100_000_questions_fit(endpoint: Endpoint, tmp_path: Path, asked: list[str]) -> None:
    rows = [question(str(number)) for number in range(100_000)]
    lines = (
        json.dumps(Answer(row.id, "tuned", "Tomas Reyes", "", "stop", 5.0, 0.1, 2, 1).__dict__) + "\n"
        for row in rows[:-2]
    )
    (tmp_path / "r").write_text("".join(lines))
    answers = asyncio.run(ask_all(endpoint, "tuned", rows, AskOptions(), tmp_path / "r", lambda _: None))
    assert len(answers) == 100_000 and sorted(asked) == ["99998", "99999"]
    ours = scored(rows, answers)
    assert summarise({"base": ours, "tuned": ours})["comparison"]["questions"] == 100_000


def test_who_is_there_is_checked_first(endpoint: Endpoint) -> None:
    names = asyncio.run(model_names(endpoint))
    assert served_run(names) == "run-1"
    with pytest.raises(UserError, match="has no model 'nope'"):
        refuse_unknown(["nope"], names, endpoint.url)
    with pytest.raises(UserError, match="refuses the API key"):
        asyncio.run(model_names(Endpoint(endpoint.url, "secret")))
    with pytest.raises(UserError, match="Nothing answers"):
        asyncio.run(model_names(Endpoint("http://127.0.0.1:1/v1")))


def evaluated(endpoint: Endpoint, folder: Path, *texts: str, **options: Any) -> EvalOutcome:
    row = {"category": "c", "answer": "a", "key_points": [["Tomas Reyes"]]}
    lines = [json.dumps(row | {"id": str(number), "question": text}) + "\n" for number, text in enumerate(texts)]
    (folder / "q.jsonl").write_text("".join(lines))
    wish = EvalWish(folder / "q.jsonl", folder / "models", folder / "out", EvalConfig(**options))
    return asyncio.run(run_eval(endpoint, wish))


def test_the_report_escapes_what_a_model_says(endpoint: Endpoint, tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", "emoji 🚢 שלום", "x" * 50_000, "dies"]
    outcome = evaluated(endpoint, tmp_path, *texts)
    page = outcome.report.read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page and "🚢" in page
    assert outcome.gate["failed_requests"] == 2 and outcome.summary["tuned"]["strict"] == 1.0
    assert "2 requests failed" in (tmp_path / "out" / "report.md").read_text()
    assert "http" not in page.replace("https://", "http").split("<body>")[0]


def test_the_gate_is_written_for_promote(endpoint: Endpoint, tmp_path: Path) -> None:
    evaluated(endpoint, tmp_path, "one", "two")
    found = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert found["passed"] is True and found["level"] == 0.05
    assert found["categories"]["c"]["questions"] == 2


def test_further_models_are_compared_with_the_base(endpoint: Endpoint, tmp_path: Path) -> None:
    outcome = evaluated(endpoint, tmp_path, "one", also=("run-1",))
    assert outcome.summary["others"]["run-1"]["comparison"]["questions"] == 1
    assert "**run-1**" in (tmp_path / "out" / "report.md").read_text()


def test_a_folder_is_not_continued_with_other_questions_or_options(endpoint: Endpoint, tmp_path: Path) -> None:
    evaluated(endpoint, tmp_path, "one")
    evaluated(endpoint, tmp_path, "one", concurrency=2)
    with pytest.raises(UserError, match="asked with other options"):
        evaluated(endpoint, tmp_path, "one", seed=1)
    with pytest.raises(UserError, match="asked with other questions"):
        evaluated(endpoint, tmp_path, "two")


def test_a_server_that_dies_takes_no_answer_with_it(tmp_path: Path) -> None:
    rows, kept = [question(str(number)) for number in range(40)], tmp_path / "r"
    options = AskOptions(max_tokens=4, attempts=1, concurrency=4)

    def run(limit: int | None) -> list[Answer]:
        """Ask an engine, which is killed after so many answers."""
        argv = [sys.executable, "benchmarks/stub_engine.py", "--ttft-ms", "5", "--itl-ms", "10"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as engine:
            assert engine.stdout
            url, count = f"http://127.0.0.1:{engine.stdout.readline().strip()}/v1", 0

            def on_answer(_: Answer) -> None:
                nonlocal count
                count += 1
                if count == limit:
                    engine.kill()

            answers = asyncio.run(ask_all(Endpoint(url), "stub", rows, options, kept, on_answer))
            engine.kill()
        return answers

    first = run(10)
    good = [answer for answer in first if not answer.error]
    assert 10 <= len(good) < 40 and all(answer.text == " word" * 4 for answer in good)
    second = run(None)
    assert [answer.error for answer in second] == [""] * 40
    assert [answer for answer in second if answer in good] == good, "what was answered is not asked again"


@pytest.mark.parametrize("command", [["eval"], ["bench"], ["chat"], ["judge", "--report", "x", "--model", "m"]])
def test_no_command_meets_a_missing_server_with_a_traceback(command: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*command, "--url", "http://127.0.0.1:1/v1"])
    assert isinstance(done.exception, UserError) and "Nothing answers" in str(done.exception)


def test_eval_says_what_failed_and_ends_with_one(endpoint: Endpoint, tmp_path: Path) -> None:
    row = {"id": "a", "category": "c", "question": "dies", "answer": "a", "key_points": [["Tomas Reyes"]]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": "b", "question": "x"}) + "\n")
    argv = ["eval", "--url", endpoint.url, "--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(main, [*argv, "--attempts", "2", "--json"])
    assert done.exit_code == 1 and "error: 2 requests failed" in done.output
    assert CliRunner().invoke(main, [*argv, "--attempts", "2", "--gate"]).exit_code == 1


def test_a_long_report_shows_changed_outcomes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.document.SHOWN", 3)
    made = pages.page()
    assert len(made["answers"]) == 3 and {row["outcome"] for row in made["answers"]} <= {"won", "lost", "failed"}
    assert "shown first" in render(made)


def test_the_config_file_is_checked_whole_and_options_win(tmp_path: Path) -> None:
    path = tmp_path / "eval.toml"
    path.write_text("max_tokens = 12\nseed = 5\n")
    config = read_config(path, {"seed": 7})
    assert (config.max_tokens, config.seed) == (12, 7)
    path.write_text("max_tokens = 0\nmax_token = 3\n")
    with pytest.raises(UserError, match=r"(?s)2 mistake.*max_tokens: .*max_token: "):
        read_config(path, {})
    with pytest.raises(UserError, match="cannot be read"):
        path.write_text("=") and read_config(path, {})
    with pytest.raises(UserError, match="needs a temperature"):
        read_config(None, {"samples": 3})
    with pytest.raises(UserError, match="not compared with itself"):
        read_config(None, {"base": "a", "tuned": "a"})
    with pytest.raises(UserError, match="no config file"):
        read_config(tmp_path / "none.toml", {})


def test_the_shipped_config_states_the_defaults() -> None:
    assert read_config(Path(__file__).parents[2] / "configs" / "eval.toml", {}) == EvalConfig()
