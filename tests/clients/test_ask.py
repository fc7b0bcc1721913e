"""Faults of a server, each provoked by a stub; what works is proven against the real engine in tests/e2e."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clients import ask
from clients.ask import Answer, AskOptions, ask_all, read_answers
from clients.endpoint import Endpoint, model_names, refuse_unknown, served_run
from clients.evaluate import scored, summarise
from clients.questions import Question
from clients.run_eval import EvalWish, run_eval
from modelstore import UserError


class Stub(BaseHTTPRequestHandler):
    """Answers as the user's text says."""

    protocol_version = "HTTP/1.0"
    asked: list[str] = []  # noqa: RUF012  one list for the whole server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if "secret" in str(self.headers.get("Authorization")):
            self._json(401, {"error": {"message": "no"}})
        else:
            self._json(
                200, {"object": "list", "data": [{"id": i, "object": "model"} for i in ("run-1", "tuned", "base")]}
            )

    def do_POST(self) -> None:
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = wish["messages"][-1]["content"]
        self.asked.append(text)
        if text == "500":
            self._json(500, {"error": {"message": "broken"}})
        elif text == "400":
            self._json(400, {"error": {"message": "context overflow"}})
        elif text == "500 once" and self.asked.count(text) == 1:
            self._json(500, {"error": {"message": "broken"}})
        else:
            self._stream(text)

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"content": "" if text == "empty" else "Tomas "}}]})
        if text == "garbage":
            self.wfile.write(b"data: {not json}\n\n")
        if text in ("dies", "garbage"):
            return
        self._event({"choices": [{"index": 0, "delta": {"content": "" if text == "empty" else "Reyes"}}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict[str, Any]) -> None:
        head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        self.wfile.write(f"data: {json.dumps(head | data)}\n\n".encode())

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(ask, "FIRST_WAIT_S", 0.01)
    Stub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "k")
    server.shutdown()


def question(text: str) -> Question:
    return Question(f"id-{text}", "process", text, "Tomas Reyes", (("Tomas Reyes",),))


def asked(endpoint: Endpoint, results: Path, *texts: str) -> list[Answer]:
    rows = [question(text) for text in texts]
    return asyncio.run(ask_all(endpoint, "tuned", rows, AskOptions(), results, lambda _: None))


def test_a_good_answer_has_its_timing(endpoint: Endpoint, tmp_path: Path) -> None:
    (answer,) = asked(endpoint, tmp_path / "r", "fine")
    assert (answer.text, answer.finish_reason, answer.output_tokens, answer.error) == ("Tomas Reyes", "stop", 2, "")
    assert answer.ttft_ms is not None and answer.ttft_ms > 0


@pytest.mark.parametrize("text", ["500", "400", "dies", "garbage", "empty"])
def test_a_fault_is_counted_and_never_scored(endpoint: Endpoint, tmp_path: Path, text: str) -> None:
    answers = asked(endpoint, tmp_path / "r", text)
    assert answers[0].error
    rows = scored([question(text)], answers)
    assert rows[0].score is None
    summary = summarise(rows, rows)
    assert summary["tuned"]["failed"] == 1 and summary["tuned"]["strict"] is None
    assert summary["comparison"] is None and summary["verdict"] == "No question was answered by both."


def test_a_passing_fault_is_tried_again_and_a_refusal_is_not(endpoint: Endpoint, tmp_path: Path) -> None:
    once, refused = asked(endpoint, tmp_path / "r", "500 once", "400")
    assert (once.error, once.attempts) == ("", 2)
    assert refused.attempts == 1


def test_an_interrupted_evaluation_does_not_ask_twice(endpoint: Endpoint, tmp_path: Path) -> None:
    asked(endpoint, tmp_path / "r", "one")
    with (tmp_path / "r").open("a") as file:
        file.write('{"question_id": "id-tw')  # cut off by a crash
    Stub.asked = []
    answers = asked(endpoint, tmp_path / "r", "one", "two")
    assert Stub.asked == ["two"] and [a.error for a in answers] == ["", ""]
    assert len(read_answers(tmp_path / "r")) >= 1


def test_who_is_there_is_checked_first(endpoint: Endpoint, tmp_path: Path) -> None:
    names = asyncio.run(model_names(endpoint))
    assert served_run(names) == "run-1"
    with pytest.raises(UserError, match="has no model 'nope'"):
        refuse_unknown(["nope"], names, endpoint.url)
    with pytest.raises(UserError, match="refuses the API key"):
        asyncio.run(model_names(Endpoint(endpoint.url, "secret")))
    with pytest.raises(UserError, match="Nothing answers"):
        asyncio.run(model_names(Endpoint("http://127.0.0.1:1/v1")))


def test_the_report_escapes_what_a_model_says(endpoint: Endpoint, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    row = {"category": "c", "answer": "a", "key_points": [["Tomas Reyes"]]}
    texts = ["<script>alert(1)</script>", "emoji 🚢 שלום", "x" * 50_000, "dies"]
    questions.write_text("".join(json.dumps(row | {"id": str(i), "question": t}) + "\n" for i, t in enumerate(texts)))
    wish = EvalWish(questions, tmp_path / "models", tmp_path / "out", "base", "tuned", AskOptions())
    outcome = asyncio.run(run_eval(endpoint, wish))
    page = outcome.report.read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page and "🚢" in page
    assert outcome.failed == 2 and outcome.summary["tuned"]["strict"] == 1.0
    assert "2 requests failed" in (tmp_path / "out" / "report.md").read_text()
    assert "http" not in page.replace("https://", "http").split("<body>")[0]
