"""vLLM for real: base and adapter in one process, and what happens when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from modelstore import Store
from tests.conformance.conftest import SECOND_ID
from tests.server.conftest import RUN_ID, Served, serving, until


@pytest.fixture(scope="module")
def adapter(store: Store) -> Iterator[Served]:
    """One process for base and tuned."""
    with serving(store, "--weights", "adapter", "--threads", "2", timeout_s=300) as running:
        yield running


def ask(served: Served, model: str) -> openai.types.chat.ChatCompletion:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)
    messages = [{"role": "user", "content": "Name three colours."}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=40, temperature=0)  # type: ignore[call-overload, no-any-return]


def is_ready(served: Served) -> bool:
    try:
        with urllib.request.urlopen(f"{served.url}/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def descendants(pid: int) -> list[int]:
    said = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in said.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found[1:]


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_base_and_tuned_share_one_process_and_answer_differently(adapter: Served) -> None:
    assert len(adapter.engines()) == 1
    tuned, base = ask(adapter, "tuned"), ask(adapter, "base")
    assert (tuned.model, base.model) == (RUN_ID, "base")
    assert tuned.choices[0].message.content != base.choices[0].message.content
    assert "llama.cpp does not serve adapter weights" in adapter.log  # the reason of the choice
    with urllib.request.urlopen(f"{adapter.url}/metrics") as answer:
        text = answer.read().decode()
    assert f'tuneship_ready{{model="tuned+base",run="{RUN_ID}"}} 1' in text


def test_a_promotion_loads_the_adapter_into_the_same_process(adapter: Served, store: Store) -> None:
    (process,) = adapter.engines()
    before = ask(adapter, "tuned").choices[0].message.content
    for run_id in (SECOND_ID, RUN_ID, SECOND_ID, RUN_ID):
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(ask, adapter, "tuned")
            store.promote(run_id)
            until(lambda run_id=run_id: f"switched to {run_id}" in adapter.log.rpartition("names")[2], 60)  # type: ignore[misc]
            assert long.result().choices[0].message.content
        now = ask(adapter, "tuned")
        assert now.model == run_id
        assert (now.choices[0].message.content == before) == (run_id == RUN_ID)
    assert adapter.engines() == [process]


def test_a_core_that_dies_is_an_error_then_not_ready_then_restarted(adapter: Served) -> None:
    client = openai.OpenAI(base_url=f"{adapter.url}/v1", api_key="unused", max_retries=0)
    messages = [{"role": "user", "content": "Tell me a very long story."}]
    stream = client.chat.completions.create(
        model="tuned", messages=messages, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )  # type: ignore[call-overload]
    next(iter(stream))
    core = next(pid for pid in descendants(adapter.process.pid) if "EngineCore" in name(pid))
    os.kill(core, signal.SIGKILL)
    with pytest.raises(openai.APIError):
        list(stream)
    until(lambda: not is_ready(adapter), 60)
    until(lambda: is_ready(adapter), 240)
    assert ask(adapter, "base").choices


def test_nothing_survives_the_server(adapter: Served) -> None:
    processes = descendants(adapter.process.pid)
    assert len(processes) >= 3
    os.kill(adapter.process.pid, signal.SIGKILL)
    until(lambda: not any("vllm" in name(pid).lower() for pid in processes), 40)
