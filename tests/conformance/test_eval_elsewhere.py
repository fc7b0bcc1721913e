"""`python -m clients` against servers that are not the kit's: bare llama.cpp and bare vLLM, by URL, key and names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelstore import Store
from server.vllm import vllm_python
from tests.conformance.conftest import ENGINE
from tests.server.conftest import ROOT, free_port, small_model, until

KEY, SLOTS, QUESTIONS = "a-key-of-theirs", 3, 3


@dataclass(frozen=True)
class Elsewhere:
    """A bare server: where, and the names of its two models."""

    url: str
    base: str
    tuned: str


@pytest.fixture(scope="module")
def elsewhere(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    there = Elsewhere(f"http://127.0.0.1:{free_port()}/v1", "somebodys-base", "somebodys-tuned")
    log = tmp_path_factory.mktemp("elsewhere") / "log"
    argv, environment = _llamacpp(there) if ENGINE == "llamacpp" else _vllm(there, store)
    with log.open("w") as output:
        process = subprocess.Popen(argv, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output)
        try:
            until(lambda: process.poll() is not None or _is_healthy(there.url), 600)
            assert process.poll() is None, log.read_text()[-3000:]
            yield there
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _llamacpp(there: Elsewhere) -> tuple[list[str], dict[str, str]]:
    """The same small model under two names: nothing can be told about such a pair."""
    script, port = ROOT / "tests/conformance/bare_llamacpp.py", there.url.split(":")[2].split("/")[0]
    return [sys.executable, str(script), str(small_model()), port, KEY, str(SLOTS), there.base, there.tuned], {}


def _vllm(there: Elsewhere, store: Store) -> tuple[list[str], dict[str, str]]:
    """The base, and a run's adapter under a name of its own."""
    base, adapter = store.bases()[0].path / "hf", store.run("current").path / "adapter"
    argv = [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--enforce-eager"]
    argv += ["--served-model-name", there.base, "--enable-lora", "--lora-modules", f"{there.tuned}={adapter}"]
    argv += ["--host", "127.0.0.1", "--port", there.url.split(":")[2].split("/")[0], "--api-key", KEY]
    argv += ["--max-model-len", "2048", "--shutdown-timeout", "10"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}
    return argv, environment | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def clients(command: str, there: Elsewhere, *options: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, in the clients' own environment; the key is in the variable that OpenAI's has."""
    python = ROOT / ".venv/clients/bin/python"
    argv = [str(python), "-m", "clients", command, "--url", there.url, *options]
    known = {name: value for name, value in os.environ.items() if not name.startswith("TUNESHIP_API_KEY")}
    return subprocess.run(
        argv, cwd=ROOT, env=known | {"OPENAI_API_KEY": key}, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def report(elsewhere: Elsewhere, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `eval` wrote about the two models there."""
    folder = tmp_path_factory.mktemp("eval")
    lines = (ROOT / "data/handbook-en/questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "questions.jsonl").write_text("".join(lines[:: len(lines) // QUESTIONS][:QUESTIONS]))
    names = ("--base", elsewhere.base, "--tuned", elsewhere.tuned)
    where = ("--questions", str(folder / "questions.jsonl"), "--out", str(folder / "out"), "--store", str(folder))
    done = clients("eval", elsewhere, *names, *where, "--max-tokens", "16")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_eval_compares_two_models_of_any_endpoint(report: Path) -> None:
    page: dict[str, Any] = json.loads((report / "report.json").read_text())
    assert page["summary"]["comparison"]["questions"] == QUESTIONS
    assert [page["summary"][side]["failed"] for side in ("base", "tuned")] == [0, 0]
    assert page["asked"]["engine"] == {"llamacpp": "llama.cpp", "vllm": "vLLM"}[ENGINE]
    assert page["asked"]["concurrency"] == {"llamacpp": SLOTS, "vllm": 8}[ENGINE], "what the server says, if it does"
    assert page["run"] is None and all(row["base"]["text"] and row["tuned"]["ttft_ms"] > 0 for row in page["answers"])
    assert "Cannot tell the tuned model from the base model" in (report / "report.md").read_text()
    assert json.loads((report / "gate.json").read_text())["failed_requests"] == 0


def test_a_real_judge_meets_every_pair_in_both_orders(elsewhere: Elsewhere, report: Path) -> None:
    rows = json.loads((report / "report.json").read_text())["answers"]
    ratings = [{"rater": "Ana", "question_id": row["id"], "base": 2, "tuned": 4, "same": False} for row in rows[:3]]
    (report / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ratings))
    options = ("--model", elsewhere.base, "--report", str(report / "report.json"), "--json")
    done = clients("judge", elsewhere, *options)
    assert done.returncode == 0 or "pairs got no verdict" in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["judged"] + found["without_verdict"] == QUESTIONS
    assert found["wins"] + found["ties"] + found["losses"] == found["judged"]
    assert found["human_pairs"] == min(3, found["human_pairs"]) and (found["human_agreement"] is not None) == bool(
        found["human_pairs"]
    )
    asked = [json.loads(line)["question_id"] for line in (report / "judge.jsonl").read_text().splitlines()]
    assert sorted(asked) == sorted(f"{row['id']} {order} first" for row in rows for order in ("base", "tuned"))


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        (("--base", "somebodys-base", "--tuned", "somebodys-tuned"), "another-key", "refuses the API key"),
        (("--base", "nobodys", "--tuned", "somebodys-tuned"), KEY, "has no model 'nobodys'"),
    ],
)
def test_mistakes_are_one_line(elsewhere: Elsewhere, options: tuple[str, ...], key: str, said: str) -> None:
    done = clients("eval", elsewhere, *options, key=key)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr


def test_bench_works_there_too(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """llama.cpp's server closes kept connections, often after the hundredth request: none may be lost by that."""
    count = 150 if ENGINE == "llamacpp" else 4
    load = ("--streams", "3", "--requests", str(count), "--prompt-tokens", "20", "--output-tokens", "2")
    done = clients("bench", elsewhere, "--model", elsewhere.tuned, *load, "--json", "--out", str(tmp_path / "b.json"))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["completed"], row["errors"], row["output_tokens_mean"]) == (count, {}, 2)
