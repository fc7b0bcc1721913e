"""The gateway when an engine refuses or drops a request. The engine is scripted: no real one does so at will."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from modelstore import Store
from tests.server.conftest import ROOT, Served, serving


@pytest.fixture
def scripted(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """A server whose engines do as tests/server/scripted_engine.py says."""
    log, program = tmp_path / "asked", tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/server/scripted_engine.py {log} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("TUNESHIP_LLAMA_SERVER", str(program))
    with serving(store) as served:
        yield Asked(served, log)


class Asked:
    """The openai client on that server, and the engines' log."""

    def __init__(self, served: Served, log: Path) -> None:
        self._client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)
        self._log = log

    def ask(self, content: str, max_tokens: int = 2048) -> str | None:
        """The text of the answer."""
        messages = [{"role": "user", "content": content}]
        reply = self._client.chat.completions.create(model="tuned", messages=messages, max_tokens=max_tokens)  # type: ignore[call-overload]
        return str(reply.choices[0].message.content)

    def limits(self, content: str) -> list[str]:
        """The max_tokens of every request with this text that an engine read."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line.partition(" ")[0] for line in lines if line.endswith(f" {content}")]


def test_a_limit_above_what_the_context_has_left_means_no_limit(scripted: Asked) -> None:
    """vLLM 0.26 refuses it; llama.cpp and later ones do not."""
    assert scripted.ask("refuse long ones") == "answered without a limit"
    assert scripted.limits("refuse long ones") == ["2048", "None"]


def test_a_prompt_that_is_too_long_is_refused_after_all(scripted: Asked) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length") as refused:
        scripted.ask("refuse always")
    assert refused.value.code == "context_length_exceeded"
    assert scripted.limits("refuse always") == ["2048", "None"]


def test_other_refusals_are_not_asked_again(scripted: Asked) -> None:
    with pytest.raises(openai.BadRequestError, match="no such grammar"):
        scripted.ask("refuse otherwise")
    assert scripted.limits("refuse otherwise") == ["2048"]


def test_a_request_that_the_engine_dropped_unanswered_is_asked_once_more(scripted: Asked) -> None:
    assert scripted.ask("drop once") == "answered"
    assert scripted.limits("drop once") == ["2048", "2048"]
    with pytest.raises(openai.InternalServerError, match="does not answer"):
        scripted.ask("drop always")
    assert scripted.limits("drop always") == ["2048", "2048"]
