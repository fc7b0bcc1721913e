"""The server stays on the run that its channel names, and no stream notices a change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from modelstore import ArtifactSpec, Store
from tests.server.conftest import BASE_ID, ROOT, RUN_ID, Served, build_store, serving, small_model, until

SECOND_ID = "20261124-0800-smollm2-handbook-b1c2"
BROKEN_ID = "20261124-0900-smollm2-handbook-dead"
CHANGES = 20


def publish(store: Store, run_id: str, model: Path | None) -> None:
    with store.stage(run_id) as staging:
        (staging.path / "gguf").mkdir()
        target = staging.path / "gguf/tuned-Q4_1.gguf"
        shutil.copyfile(model, target) if model else target.write_bytes(b"GGUF, but not really")
        fields = {"base": {"id": BASE_ID}, "serve": {"quantization": "Q4_1"}}
        staging.publish(fields, [ArtifactSpec("gguf", "gguf/tuned-Q4_1.gguf", "Q4_1")])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two runs that can be served and one that cannot."""
    store = build_store(tmp_path_factory.mktemp("followed") / "models")
    publish(store, SECOND_ID, small_model())
    publish(store, BROKEN_ID, None)
    return store


def modelstore(store: Store, *arguments: str) -> None:
    argv = [sys.executable, "-m", "modelstore", "--store", str(store.path), *arguments]
    subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def serves(served: Served) -> str:
    with urllib.request.urlopen(f"{served.url}/ready", timeout=10) as answer:
        return str(json.load(answer)["run"])


def stream(served: Served, model: str, tokens: int) -> tuple[int, str]:
    """Number of pieces and who answered. Raises what a client would see of a lost stream."""
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0, timeout=120)
    wish = {"max_tokens": tokens, "stream": True, "extra_body": {"ignore_eos": True}}
    chunks = list(
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Tell a story."}], **wish)  # type: ignore[call-overload]
    )
    assert chunks[-1].choices[0].finish_reason == "length"
    return len(chunks), chunks[0].model


def test_twenty_promotions_and_rollbacks_lose_no_stream(store: Store) -> None:
    over = threading.Event()

    def keep_asking(number: int) -> list[tuple[int, str]]:
        told = []
        while not over.is_set():
            told.append(stream(served, ("tuned", "base", "tuned")[number], (12, 25, 60)[number]))
        return told

    with serving(store, "--threads", "2") as served, ThreadPoolExecutor(3) as pool:
        base = served.engines()[1]
        asking = [pool.submit(keep_asking, number) for number in range(3)]
        try:
            for change in range(CHANGES):
                wanted = (SECOND_ID, RUN_ID)[change % 2]
                modelstore(store, *(("promote", wanted) if change % 4 < 2 else ("rollback",)))
                until(lambda wanted=wanted: serves(served) == wanted, 40)  # type: ignore[misc]
                assert not [task for task in asking if task.done()], [
                    task.exception() for task in asking if task.done()
                ]
        finally:
            over.set()
        told = [stream for task in asking for stream in task.result()]  # raises what a stream raised
        assert {answered for _, answered in told} == {RUN_ID, SECOND_ID, "base"}
        assert len(told) > CHANGES
        until(lambda: len(served.engines()) == 2, 30)  # the engines of the runs before are gone
        assert base in served.engines()  # both runs share it, so it was never started again
        assert served.log.count("switched to") == CHANGES


def test_a_long_stream_ends_on_the_engine_that_began_it(store: Store) -> None:
    store.promote(RUN_ID)
    with serving(store, "--threads", "1") as served, ThreadPoolExecutor(1) as pool:
        long = pool.submit(stream, served, "tuned", 600)
        time.sleep(0.5)
        store.promote(SECOND_ID)
        until(lambda: serves(served) == SECOND_ID, 40)
        assert not long.done()
        assert stream(served, "tuned", 2)[1] == SECOND_ID
        assert len(served.engines()) == 3
        assert long.result(60)[1] == RUN_ID
        until(lambda: len(served.engines()) == 2, 30)


def test_a_run_that_cannot_be_served_leaves_the_old_one_in_place(store: Store) -> None:
    store.promote(RUN_ID)
    with serving(store, "--threads", "1") as served:
        store.promote(BROKEN_ID)
        until(lambda: f"still serving {RUN_ID}" in served.log, 30)
        assert serves(served) == RUN_ID
        assert stream(served, "tuned", 2)[1] == RUN_ID
        with urllib.request.urlopen(f"{served.url}/metrics") as answer:
            assert 'tuneship_switches_total{result="refused"} 1' in answer.read().decode()
        store.promote(SECOND_ID)
        until(lambda: serves(served) == SECOND_ID, 40)


def test_a_run_named_by_its_id_stays(store: Store) -> None:
    store.promote(RUN_ID)
    with serving(store, RUN_ID, "--threads", "1") as served:
        store.promote(SECOND_ID)
        time.sleep(2)
        assert serves(served) == RUN_ID
        assert "names" not in served.log


def test_only_what_an_allowed_signer_signed_is_served(store: Store, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ada")], check=True)
    signers = tmp_path / "signers"
    signers.write_text(f"ada {(tmp_path / 'ada.pub').read_text()}")
    store.promote(RUN_ID)
    options = ("--threads", "1", "--allowed-signers", str(signers))
    argv = [sys.executable, "-m", "server", "serve", "--store", str(store.path), *options, "--dry-run"]
    unsigned = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert unsigned.returncode == 2 and "is not signed" in unsigned.stderr and "Traceback" not in unsigned.stderr

    modelstore(store, "sign", RUN_ID, "--key", str(tmp_path / "ada"))
    with serving(store, *options) as served:
        store.promote(SECOND_ID)
        until(lambda: "is not signed" in served.log, 30)
        assert f"still serving {RUN_ID}: {SECOND_ID} cannot be served" in served.log
        assert serves(served) == RUN_ID
        store.promote(RUN_ID)
        time.sleep(1)
        modelstore(store, "sign", SECOND_ID, "--key", str(tmp_path / "ada"))
        store.promote(SECOND_ID)
        until(lambda: serves(served) == SECOND_ID, 40)
