"""The conversation: switching, side by side, faults."""

from __future__ import annotations

import builtins
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from clients.chat import Talk, command
from clients.cli import main
from clients.endpoint import Endpoint
from modelstore import UserError

NAMES = ["run-1", "tuned", "base"]


def talked(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, *lines: str, options: tuple[str, ...] = ()) -> str:
    said: Iterator[str] = iter(lines)

    def read(_: str) -> str:
        for line in said:
            return line
        raise EOFError

    monkeypatch.setattr(builtins, "input", read)
    done = CliRunner().invoke(main, ["chat", "--url", endpoint.url, *options], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.exception
    return done.output


def test_a_conversation_keeps_what_was_said(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    output = talked(endpoint, monkeypatch, "one", "/model base", "two", "/nonsense", "/quit")
    assert output.count("Tomas Reyes") == 2 and "now base" in output and "models: run-1, tuned, base" in output


def test_two_models_answer_side_by_side(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    output = talked(endpoint, monkeypatch, "/both", "one")
    row = next(line for line in output.splitlines() if "Tomas" in line)
    assert row.count("Tomas Reyes") == 2
    assert "base | tuned" in talked(endpoint, monkeypatch, options=("--model", "base", "--model", "tuned"))


@pytest.mark.parametrize("fault", ["500", "error event", "garbage", "number"])
def test_a_fault_is_said_and_the_conversation_goes_on(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    output = talked(endpoint, monkeypatch, fault, "fine")
    assert "error: tuned:" in output and output.rstrip().endswith("Tomas Reyes")


def test_commands_change_the_talk() -> None:
    talk = Talk(["tuned"], "")
    talk.asked("tuned", "hello")
    talk.answered("tuned", "")
    assert talk.histories["tuned"] == []
    assert command(talk, "/system Be brief.", NAMES).startswith("a new conversation")
    assert talk.asked("tuned", "hello")[0] == {"role": "system", "content": "Be brief."}
    assert command(talk, "/both base nobody", NAMES).endswith("base") and talk.models == ["tuned"]
    assert command(talk, "/new", NAMES) == "forgotten" and talk.histories == {}


def test_an_unknown_model_and_an_unreachable_server_are_explained(endpoint: Endpoint) -> None:
    unknown = CliRunner().invoke(main, ["chat", "--url", endpoint.url, "--model", "nope"])
    assert isinstance(unknown.exception, UserError) and "has no model 'nope'" in str(unknown.exception)
    gone = CliRunner().invoke(main, ["chat", "--url", "http://127.0.0.1:1/v1"])
    assert isinstance(gone.exception, UserError) and "Nothing answers" in str(gone.exception)
