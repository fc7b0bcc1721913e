"""What can be said without a running server."""

from __future__ import annotations

import hmac
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelstore import Store, UserError
from server import llamacpp
from server.engine import EngineOptions
from server.errors import ApiError, from_engine
from server.keys import KeyRing, read_keys
from server.llamacpp import LlamaCpp, llamacpp_environment, llamacpp_program
from server.metrics import EngineState, RequestCounts, labelled
from server.plan import Wish, plan_serving
from server.quota import Seats
from server.validation import Limits, check_request
from server.wait import wait_until_ready
from tests.server.conftest import ROOT, RUN_ID, free_port

_UNREADABLE = "A field of the request has a type or a value that the engine cannot read."
LIMITS = Limits(context_tokens=2048, slots=8)


def test_the_environment_carries_the_key_and_keeps_the_users_choice() -> None:
    assert llamacpp_environment("k", {}) == {"LLAMA_API_KEY": "k", "GOMP_SPINCOUNT": "1000"}
    assert llamacpp_environment("k", {"GOMP_SPINCOUNT": "9"})["GOMP_SPINCOUNT"] == "9"


def test_a_llama_server_of_the_user_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(llamacpp, "llamacpp_folder", lambda: None)
    assert llamacpp_program() == [sys.executable, "-m", "server.xllama"]
    (tmp_path / "llama-server").write_text("")
    (tmp_path / "llama-server").chmod(0o755)
    assert llamacpp_program() == [str(tmp_path / "llama-server")]
    monkeypatch.setattr(llamacpp, "llamacpp_folder", lambda: Path("/compiled"))
    assert llamacpp_program() == ["/compiled/llama-server"]
    monkeypatch.setenv("TUNESHIP_LLAMA_SERVER", "/opt/llama-server")
    assert llamacpp_program() == ["/opt/llama-server"]


def test_the_folder_that_the_trainer_exports_with_serves_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TUNESHIP_LLAMA_SERVER", raising=False)
    monkeypatch.setenv("TUNESHIP_LLAMACPP", str(tmp_path))
    (tmp_path / "llama-quantize").touch()
    with pytest.raises(UserError, match="there is no llama-server in it"):
        llamacpp_program()
    (tmp_path / "llama-server").touch()
    assert llamacpp_program() == [str(tmp_path / "llama-server")]


def test_base_and_tuned_are_two_files_of_one_quantization(store: Store) -> None:
    plan = plan_serving(store, "current", Wish(LlamaCpp(), EngineOptions()))
    assert [engine.title for engine in plan.engines] == ["tuned", "base"]
    names = [model.names for engine in plan.engines for model in engine.models]
    assert names == [(RUN_ID, "tuned"), ("base", "smollm2-135m-instruct")]
    assert len({word for engine in plan.engines for word in engine.argv if word.endswith(".gguf")}) == 2
    assert len({engine.api_key for engine in plan.engines}) == 2


def test_dry_run_prints_commands_and_no_key(store: Store) -> None:
    argv = [sys.executable, "-m", "server", "serve", "--store", str(store.path), "--dry-run"]
    said = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.count("-m ") >= 2
    assert "GOMP_SPINCOUNT=1000" in said
    assert "KEY" not in said


def test_a_purpose_is_chosen_on_the_command_line(store: Store) -> None:
    argv = [sys.executable, "-m", "server", "serve", "--store", str(store.path), "--dry-run", "--engine", "llamacpp"]
    argv += ["--for", "throughput", "--streams", "3"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("for throughput with 3 streams: ")
    assert "engine: llamacpp, because it was asked for" in done.stderr
    assert done.stdout.count(" -np 3 ") == 2


def test_wait_gives_the_reason_and_exit_code_1() -> None:
    port = free_port()
    assert "refused" in wait_until_ready(f"http://127.0.0.1:{port}", 0)
    argv = [sys.executable, "-m", "server", "wait", "--url", f"http://127.0.0.1:{port}", "--timeout-s", "0.2"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not ready" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nobody\n",
        "alice\n",
        "alice one two\n",
        "alice key-1\nalice key-2\n",
        "alice k streams=0\n",
        "alice k per_minute=1 per_minute=2\n",
    ],
)
def test_key_files_that_would_surprise_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match="keys"):
        read_keys(tmp_path / "keys")


def test_the_environment_names_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESHIP_API_KEY", raising=False)
    assert KeyRing(None).is_empty
    monkeypatch.setenv("TUNESHIP_API_KEY", "secret")
    ring = KeyRing(None)
    assert ring.find("secre") is None
    found = ring.find("secret")
    assert found is not None
    assert found.name == "environment"


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("".join(f"user{n} key-{n}\n" for n in range(5)))
    ring, compared = KeyRing(tmp_path / "keys"), list[int]()
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(len(a) + len(b)) or real(a, b))
    for given in ("key-0", "key-4", "", "key-", "x" * 100_000):
        ring.find(given)
    assert compared == [64] * 25  # all five each time, by digests of one length


def test_an_engine_has_so_many_seats() -> None:
    seats = Seats(1)
    with seats.taking(), pytest.raises(ApiError, match="wait already") as caught, seats.taking():
        pass
    assert (caught.value.status, caught.value.code) == (503, "server_overloaded")
    with seats.taking():
        pass


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error":{"message":"bad field","type":"invalid_request_error"}}', (400, "bad field", None)),
        (400, b'{"error":{"message":"x","type":"exceed_context_size_error"}}', (400, "x", "context_length_exceeded")),
        (500, b'{"error":{"message":"/secret/path"}}', (502, "The engine failed.", None)),
        (500, b'{"error":{"message":"[json.exception.type_error.302] type must be"}}', (400, _UNREADABLE, None)),
        (500, b'{"error":{"message":"Failed to parse messages: Missing"}}', (400, _UNREADABLE, None)),
        (503, b"", (503, "The model is loading.", None)),
        (400, b"<html>", (400, "The engine refused the request without a reason.", None)),
        (400, b'{"error":"text"}', (400, "The engine refused the request without a reason.", None)),
    ],
)  # fmt: skip
def test_engine_errors_take_our_shape(status: int, body: bytes, expected: tuple[int, str, str | None]) -> None:
    error = from_engine(status, body)
    assert (error.status, str(error), error.code) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": 5},
        {"prompt": None},
        {"prompt": ["a"] * 129},
        {"prompt": "a", "n_predict": -1},
        {"prompt": "a", "max_tokens": 2049},
        {"prompt": "a", "top_p": 1.5},
        {"prompt": "a", "stop": [1]},
    ],
)
def test_completions_that_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        check_request(body, LIMITS, is_chat=False)
    assert caught.value.status == 400
    assert caught.value.param in body


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [1, 2, 3], [1] * 2000, [[1], [2]]])
def test_completions_that_pass(prompt: Any) -> None:
    check_request({"prompt": prompt, "max_tokens": None, "stop": None, "stream": None}, LIMITS, is_chat=False)


def state(role: str, text: str, restarts: int = 0) -> EngineState:
    return EngineState(f'model="{role}",run="r"', True, restarts, text, {"tuneship_requests_running": 2.0})


def test_metrics_of_two_engines_share_one_head() -> None:
    text = '# HELP a:b help\n# TYPE a:b counter\na:b 3\na:c{x="1 {2}"} 4\n'
    lines = labelled([state("tuned", text), state("base", text)]).splitlines()
    assert lines == [
        "# HELP a:b help",
        "# TYPE a:b counter",
        'a:b{model="tuned",run="r"} 3',
        'a:b{model="base",run="r"} 3',
        'a:c{model="tuned",run="r",x="1 {2}"} 4',
        'a:c{model="base",run="r",x="1 {2}"} 4',
    ]


def test_the_samples_of_a_histogram_stay_with_its_head() -> None:
    text = '# HELP v:t help\n# TYPE v:t histogram\nv:t_bucket{le="1.0"} 3\nv:t_sum 1.5\n'
    lines = labelled([state("tuned", text), state("base", text)]).splitlines()
    assert [line.partition("{")[0] for line in lines[2:]] == ["v:t_bucket", "v:t_sum", "v:t_bucket", "v:t_sum"]


def test_counts_by_model_run_and_status() -> None:
    counts = RequestCounts()
    counts.add("tuned", "r", 200, 0.25)
    counts.add("tuned", "r", 200, 0.25)
    text = counts.text([state("tuned", "", restarts=2)], {"done": 3}, 8)
    assert 'tuneship_requests_total{model="tuned",run="r",code="200"} 2\n' in text
    assert 'tuneship_request_seconds_total{model="tuned",run="r"} 0.5\n' in text
    assert 'tuneship_restarts_total{model="tuned",run="r"} 2\n' in text
    assert 'tuneship_requests_running{model="tuned",run="r"} 2\n' in text
    assert 'tuneship_switches_total{result="done"} 3\n' in text
    assert 'tuneship_slots{model="tuned",run="r"} 8\n' in text


def test_the_documented_options_are_the_real_ones() -> None:
    argv = [sys.executable, "-m", "server", "serve", "--help"]
    environment = {**os.environ, "COLUMNS": "110"}
    said = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    assert said.rstrip() in (ROOT / "docs/serving.md").read_text(encoding="utf-8")


def test_a_key_has_its_own_limits(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice key-a per_minute=2\nbob key-b streams=1\n")
    ring = KeyRing(file)
    alice, bob = ring.find("key-a"), ring.find("key-b")
    assert alice is not None
    assert bob is not None
    for _ in range(2):
        with ring.quota(alice).spending():
            pass
    with pytest.raises(ApiError) as caught, ring.quota(alice).spending():
        pass
    assert caught.value.status == 429
    assert 1 <= int(caught.value.headers()["Retry-After"]) <= 30
    with ring.quota(bob).spending(), pytest.raises(ApiError, match="1 requests"), ring.quota(bob).spending():
        pass
    with ring.quota(bob).spending():  # the first one has ended
        pass
